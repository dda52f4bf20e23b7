// The forward variants.
#include "variants.cuh"

namespace vae_fused::probe {

std::vector<Variant> forward_variants() {
  constexpr Direction d = Direction::kForward;
  std::vector<Variant> all = variants_of<math::BFloat16, ForwardStep>(d, DType::kBFloat16);
  const std::vector<Variant> more = variants_of<float, ForwardStep>(d, DType::kFloat32);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace vae_fused::probe
