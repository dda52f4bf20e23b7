// What the kernels ask of the operating system: huge pages for huge results.
//
// From 32 MiB on the C library's allocator maps every tensor anew, and the system fills it in by
// pages of 4 KiB, usually, each with a fault when it is first written. For 2^24 elements that is
// three fifths of the time of a call; see docs/performance.md, "Threads and memory". Linux has huge
// pages for those who ask, unless it is told otherwise; then, or elsewhere, nothing happens.
#include "params/device.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace vae_fused::cpu {

void prepare_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kMapped = size_t{32} << 20;
  if (bytes < kMapped) return;
  // The system refuses what does not begin with a page, and on Arm one may have 64 KiB.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1);
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(page - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace vae_fused::cpu
