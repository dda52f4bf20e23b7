// Memory operations that are written in PTX, because CUDA C++ either cannot express them or lets
// the compiler turn them into something slower. The emulated device of the tests replaces each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "math/platform.h"

namespace vae_fused::cuda {

// Stores 16 bytes at once. Written as an assignment, nvcc merges the store of a whole vector with
// the elementwise store of a partial vector beside it, and up to sm_90 splits both into words.
__device__ __forceinline__ void store_16_bytes(void* address, uint4 words) {
#if defined(VAE_FUSED_EMULATOR)
  *static_cast<uint4*>(address) = words;
#else
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)),
               "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
#endif
}

// Reads an object in shared memory that no longer changes, 16 bytes at a time, in this place and
// every time. Without `volatile` the compiler would read it once, in front of the loop, and keep it
// in registers.
template <typename T>
__device__ __forceinline__ T read_shared(const T* object) {
  constexpr int kWords = sizeof(T) / sizeof(uint4);
  static_assert(sizeof(T) % sizeof(uint4) == 0);
  uint4 words[kWords];
  VAE_FUSED_UNROLL
  for (int i = 0; i < kWords; ++i) {
    const uint4* const address = reinterpret_cast<const uint4*>(object) + i;
#if defined(VAE_FUSED_EMULATOR)
    words[i] = *address;
#else
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[i].x), "=r"(words[i].y), "=r"(words[i].z), "=r"(words[i].w)
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(address))));
#endif
  }
  T read;
  std::memcpy(&read, words, sizeof read);
  return read;
}

// Adds 1 to a counter that wraps to 0 beyond `last`, and returns its previous value. What happened
// before this call, in this thread or across a barrier, has happened for the threads that count
// later, and for whom they meet at a barrier. A fence on either side of atomicInc has the same
// effect, but compiles to two MEMBAR and two CCTL.IVALL instead of one of each.
__device__ __forceinline__ unsigned int count_in_order(unsigned int* counter, unsigned int last) {
#if defined(VAE_FUSED_EMULATOR)
  __threadfence();
  const unsigned int before = atomicInc(counter, last);
  __threadfence();
  return before;
#else
  unsigned int before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter)), "r"(last)
               : "memory");
  return before;
#endif
}

}  // namespace vae_fused::cuda
