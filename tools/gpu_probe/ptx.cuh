// The instructions that CUDA C++ has no function for, each with an alternative for the emulated
// device. They are volatile, so that the compiler keeps the order in which a variant issues its
// loads: that order is what the variants compare.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#if defined(VAE_FUSED_EMULATOR)
#include <vector>
#endif

namespace vae_fused::probe {

__device__ __forceinline__ uint4 load_global(const void* address) {
#if defined(VAE_FUSED_EMULATOR)
  return *static_cast<const uint4*>(address);
#else
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(address)));
  return v;
#endif
}

// Reads through the read-only path without leaving a line in the L1 cache.
__device__ __forceinline__ uint4 load_global_once(const void* address) {
#if defined(VAE_FUSED_EMULATOR)
  return *static_cast<const uint4*>(address);
#else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(address)));
  return v;
#endif
}

__device__ __forceinline__ void store_global(void* address, const uint4& v) {
#if defined(VAE_FUSED_EMULATOR)
  *static_cast<uint4*>(address) = v;
#else
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
#endif
}

__device__ __forceinline__ uint4 load_shared(const void* address) {
#if defined(VAE_FUSED_EMULATOR)
  return *static_cast<const uint4*>(address);
#else
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(address))));
  return v;
#endif
}

// atomicInc that releases what the thread has written before and acquires what others released.
__device__ __forceinline__ unsigned int increment_acq_rel(unsigned int* counter,
                                                          unsigned int last) {
#if defined(VAE_FUSED_EMULATOR)
  __threadfence();
  const unsigned int old = atomicInc(counter, last);
  __threadfence();
  return old;
#else
  unsigned int old;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(counter)), "r"(last)
               : "memory");
  return old;
#endif
}

// Asynchronous copies of 16 bytes from global to shared memory by one thread. The emulated device
// copies at the wait and not before, so that a missing wait gives wrong results.
class AsyncCopies {
 public:
  __device__ __forceinline__ void copy(uint4* shared, const void* global) {
#if defined(VAE_FUSED_EMULATOR)
    pending_.push_back({shared, static_cast<const uint4*>(global), groups_});
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(__cvta_generic_to_global(global))
                 : "memory");
#endif
  }

  __device__ __forceinline__ void commit() {
#if defined(VAE_FUSED_EMULATOR)
    ++groups_;
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  // Waits until at most kGroups of the committed groups are pending.
  template <int kGroups>
  __device__ __forceinline__ void wait() {
#if defined(VAE_FUSED_EMULATOR)
    std::vector<Copy> later;
    for (const Copy& c : pending_) {
      if (c.group < groups_ - kGroups) {
        *c.to = *c.from;
      } else {
        later.push_back(c);
      }
    }
    pending_.swap(later);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
  }

#if defined(VAE_FUSED_EMULATOR)
 private:
  struct Copy {
    uint4* to;
    const uint4* from;
    int group;
  };
  std::vector<Copy> pending_;
  int groups_ = 0;
#endif
};

}  // namespace vae_fused::probe
