// Computes the normals of a key with the machine's vector instructions. Each instruction set has
// its own functions. `fill` computes n consecutive normals, starting at `index`, and `fill_at`
// computes normals `indices[0]`, `indices[1]`, ...
#pragma once

#include "cpu/capability.h"
#include "cpu/prefetch.h"
#include "iteration/key.h"

namespace vae_fused::cpu {

// Stores the key that a call has used, for its backward pass. `out` is null if the key is not
// needed.
inline void write_key(const Key& key, uint64_t* out) {
  if (!out) return;
  out[0] = key.seed;
  out[1] = key.offset;
}

#define VAE_FUSED_NOISE(target, T)                                                  \
  namespace target {                                                                \
  void fill(const Key& key, uint64_t index, int n, T* out, Prefetcher& prefetcher); \
  void fill_at(const Key& key, const uint64_t* indices, int n, T* out);             \
  }
#define VAE_FUSED_NOISE_OF(T)  \
  VAE_FUSED_NOISE(baseline, T) \
  VAE_FUSED_NOISE(avx2, T)     \
  VAE_FUSED_NOISE(avx512, T)
VAE_FUSED_NOISE_OF(float)
VAE_FUSED_NOISE_OF(double)
#undef VAE_FUSED_NOISE_OF
#undef VAE_FUSED_NOISE

}  // namespace vae_fused::cpu
