// Normals of a key, made by vectors as wide as the machine's, in functions for each instruction
// set: normals `index` to `index + n` of the stream, and normals `indices[0]`, `indices[1]`, ...
#pragma once

#include "cpu/capability.h"
#include "params.h"

namespace vae_fused::cpu {

// Memory that is soon wanted. Noise is arithmetic alone, for most of a kernel's time, so this is
// fetched meanwhile: some lines at each of its steps, as all at once would wait for each other.
class Wanted {
 public:
  // So many bytes of each run of memory. Beyond a tensor's end nothing happens: it is a hint.
  VAE_FUSED_HD explicit Wanted(int bytes) : bytes_(bytes) {}

  VAE_FUSED_HD void add(const void* run) { from_[count_++] = reinterpret_cast<uintptr_t>(run); }
  VAE_FUSED_HD void add_next(const void* run) {
    from_[count_++] = reinterpret_cast<uintptr_t>(run) + bytes_;
  }
  VAE_FUSED_HD void clear() { count_ = done_ = 0; }

  template <int kLines>
  VAE_FUSED_HD void fetch() {
    constexpr int kLine = 64;
    if (done_ >= bytes_) return;
    for (int i = 0; i < count_; ++i) {
      const uintptr_t from = from_[i] + done_;
      VAE_FUSED_UNROLL
      for (int l = 0; l < kLines; ++l) {
        __builtin_prefetch(reinterpret_cast<const void*>(from + l * kLine));
      }
    }
    done_ += kLines * kLine;
  }

 private:
  uintptr_t from_[kMaxBindings];
  int count_ = 0, bytes_, done_ = 0;
};

#define VAE_FUSED_NOISE(target, T)                                          \
  namespace target {                                                        \
  void fill(const Key& key, uint64_t index, int n, T* out, Wanted& wanted); \
  void fill_at(const Key& key, const uint64_t* indices, int n, T* out);     \
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
