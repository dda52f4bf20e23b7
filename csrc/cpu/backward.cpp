// The backward CPU kernel: a task per tile. What a tile does is in backward_tile.h.
#include "cpu/dispatch.h"

namespace vae_fused::cpu {

void backward(const BackwardParams& params, ParallelFor parallel_for) {
  run(params, resolve(params.key), parallel_for);
}

}  // namespace vae_fused::cpu
