// Memory operations that are written in PTX, because CUDA C++ either cannot express them or lets
// the compiler turn them into something slower. The emulated device of the tests replaces each of
// these operations.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "math/platform.h"

namespace vae_fused::cuda {

// Stores 16 bytes at once. If this were an assignment, nvcc would merge the store of a whole vector
// with the elementwise store of a partial vector in the other branch, and up to sm_90 would split
// both into words.
__device__ __forceinline__ void store_16_bytes(void* address, uint4 words) {
#if defined(VAE_FUSED_EMULATOR)
  *static_cast<uint4*>(address) = words;
#else
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)),
               "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
#endif
}

// The address of an object in shared memory that is fully written before the first read.
template <typename T>
class SharedAddress {
 public:
  SharedAddress() = default;

#if defined(VAE_FUSED_EMULATOR)
  explicit SharedAddress(const T* object) : address_(reinterpret_cast<const char*>(object)) {}
#else
  __device__ __forceinline__ explicit SharedAddress(const T* object)
      : address_(static_cast<uint32_t>(__cvta_generic_to_shared(object))) {}
#endif

  // Reads the whole object, 16 bytes at a time. Because of `volatile`, each call reads the memory
  // again. Without `volatile`, the compiler would read the object once before the loop and keep it
  // in registers.
  __device__ __forceinline__ T read() const {
    constexpr int kVectors = sizeof(T) / sizeof(uint4);
    static_assert(sizeof(T) % sizeof(uint4) == 0);
    uint4 words[kVectors];
    VAE_FUSED_UNROLL
    for (int i = 0; i < kVectors; ++i) {
#if defined(VAE_FUSED_EMULATOR)
      words[i] = *reinterpret_cast<const uint4*>(address_ + i * 16);
#else
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[i].x), "=r"(words[i].y), "=r"(words[i].z), "=r"(words[i].w)
                   : "r"(address_ + i * 16)
                   : "memory");
#endif
    }
    T object;
    std::memcpy(&object, words, sizeof object);
    return object;
  }

  // Reads word i. The compiler chooses where to place the load. The host never calls this function,
  // but its callers are compiled for host and device.
  __host__ __device__ __forceinline__ uint32_t word(uint32_t i) const {
#if defined(VAE_FUSED_EMULATOR)
    return *reinterpret_cast<const uint32_t*>(address_ + i * 4);
#else
    uint32_t word;
    asm("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address_ + i * 4));
    return word;
#endif
  }

 private:
#if defined(VAE_FUSED_EMULATOR)
  const char* address_;
#else
  uint32_t address_;
#endif
};

// Adds 1 to a counter that wraps to 0 after `last`, and returns its previous value. Writes that
// precede this call, in this thread or before a barrier, are visible to the threads that count
// later and to every thread that then passes a barrier with one of them. Two fences, one before and
// one after an atomicInc, have the same effect, but compile to two MEMBAR and two CCTL.IVALL
// instructions instead of one of each.
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
