// Prefetches memory that will be needed soon.
#pragma once

#include "iteration/operand.h"

namespace vae_fused::cpu {

// Runs of memory that the next piece of a tile reads, or that this piece writes. Generating noise
// is pure arithmetic and takes most of a kernel's time, so each step of the noise generator
// prefetches a few cache lines. If all lines were prefetched at once, the prefetches would wait for
// each other.
class Prefetcher {
 public:
  // `bytes` is the length of each run. A run may extend past the end of its tensor, because a
  // prefetch is only a hint.
  VAE_FUSED_HD explicit Prefetcher(int bytes) : bytes_(bytes) {}

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
  uintptr_t from_[kMaxOperands];
  int count_ = 0, bytes_, done_ = 0;
};

}  // namespace vae_fused::cpu
