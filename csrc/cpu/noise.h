// Normals of a key: from an index on, and at any indices. They are made by vectors as wide as the
// machine's, in a function for each instruction set.
#pragma once

#include "cpu/capability.h"
#include "params.h"

namespace vae_fused::cpu {

#define VAE_FUSED_NOISE(target, T)                                      \
  namespace target {                                                    \
  void fill(const Key& key, uint64_t index, int n, T* out);             \
  void fill_at(const Key& key, const uint64_t* indices, int n, T* out); \
  }
#define VAE_FUSED_NOISE_OF(T)  \
  VAE_FUSED_NOISE(baseline, T) \
  VAE_FUSED_NOISE(avx2, T)     \
  VAE_FUSED_NOISE(avx512, T)
VAE_FUSED_NOISE_OF(float)
VAE_FUSED_NOISE_OF(double)
#undef VAE_FUSED_NOISE_OF
#undef VAE_FUSED_NOISE

// Normals `index` to `index + n` of the stream.
template <typename T>
void fill_normals(const Key& key, uint64_t index, int n, T* out) {
#if defined(VAE_FUSED_CPU_TARGETS)
  switch (capability()) {
    case Capability::kAvx512:
      return avx512::fill(key, index, n, out);
    case Capability::kAvx2:
      return avx2::fill(key, index, n, out);
    case Capability::kDefault:
      break;
  }
#endif
  baseline::fill(key, index, n, out);
}

// Normals `indices[0]`, `indices[1]`, ...
template <typename T>
void fill_normals_at(const Key& key, const uint64_t* indices, int n, T* out) {
#if defined(VAE_FUSED_CPU_TARGETS)
  switch (capability()) {
    case Capability::kAvx512:
      return avx512::fill_at(key, indices, n, out);
    case Capability::kAvx2:
      return avx2::fill_at(key, indices, n, out);
    case Capability::kDefault:
      break;
  }
#endif
  baseline::fill_at(key, indices, n, out);
}

}  // namespace vae_fused::cpu
