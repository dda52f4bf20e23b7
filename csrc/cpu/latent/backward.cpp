// The backward CPU kernel. backward_tile.h defines how its tasks compute a tile.
#include "cpu/latent/tasks.h"

namespace vae_fused::cpu {

void backward(const WithScalars<BackwardParams>& given, ParallelFor parallel_for) {
  const Key key = resolve(given.key);
  with_scalars_read(given, [&](const BackwardParams& params) { run(params, key, parallel_for); });
}

}  // namespace vae_fused::cpu
