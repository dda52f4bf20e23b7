// The backward variants.
#include "variants.cuh"

namespace vae_fused::probe {

std::vector<Variant> backward_variants() {
  constexpr Direction d = Direction::kBackward;
  std::vector<Variant> all = variants_of<math::BFloat16, BackwardStep>(d, DType::kBFloat16);
  const std::vector<Variant> more = variants_of<float, BackwardStep>(d, DType::kFloat32);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace vae_fused::probe
