// The forward CPU kernel. forward_tile.h defines how its tasks compute a tile.
#include "cpu/combine.h"
#include "cpu/latent/tasks.h"
#include "cpu/noise.h"

namespace vae_fused::cpu {

void forward(const WithScalars<ForwardParams>& given, ParallelFor parallel_for) {
  const Key key = resolve(given.key);
  write_key(key, given.key_out);
  with_scalars_read(given, [&](const ForwardParams& params) { run(params, key, parallel_for); });
  combine(given.dtype, given.space, kl_sums(given));
}

}  // namespace vae_fused::cpu
