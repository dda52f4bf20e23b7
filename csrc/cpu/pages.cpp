// Advises the operating system to use huge pages for large results.
//
// For every tensor of 32 MiB or more, the C library's allocator maps new memory. The system usually
// provides this memory in pages of 4 KiB, with a page fault when each page is first written. For
// 2^24 elements, this takes three fifths of the time of a call; see
// docs/performance/decisions/0007-huge-pages.md. Linux provides huge pages on request, unless it is
// configured otherwise. Under such a configuration, and on other systems, the request has no
// effect.
#include "params/device.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace vae_fused::cpu {

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kMapped = size_t{32} << 20;
  if (bytes < kMapped) return;
  // The system requires a page-aligned address. On Arm, a page may be 64 KiB.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1);
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(page - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace vae_fused::cpu
