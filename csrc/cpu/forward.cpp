// The forward CPU kernel: a task per tile. What a tile does is in forward_tile.h.
#include "cpu/dispatch.h"

namespace vae_fused::cpu {
namespace {

// Rows of several tiles: their partial sums, of twice the KL, in order.
template <typename T>
void combine(const ForwardParams& p) {
  for (int64_t row = 0; row < p.space.rows; ++row) {
    double total = 0;
    for (int64_t t = 0; t < p.space.tiles_per_row; ++t) {
      total += p.partials[row * p.space.tiles_per_row + t];
    }
    static_cast<T*>(p.kl)[row] = static_cast<T>(0.5 * p.kl_scale * total);
  }
}

}  // namespace

void forward(const ForwardParams& params, ParallelFor parallel_for) {
  const Key key = resolve(params.key);
  write_key(key, params.key_out);
  run(params, key, parallel_for);
  if (!params.kl || !params.partials) return;
  params.dtype == DType::kFloat64 ? combine<double>(params) : combine<float>(params);
}

}  // namespace vae_fused::cpu
