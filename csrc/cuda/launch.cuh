// The one way a kernel is launched, and a store written in PTX: what the emulated device of the
// tests replaces.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace vae_fused::cuda {

constexpr int kThreads = 256;  // of every block

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, cudaStream_t stream,
                   Arguments&&... arguments) {
  if (blocks > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned int>(blocks));
#if defined(VAE_FUSED_EMULATOR)
  return emu::launch(kernel, grid, dim3(kThreads), 0, stream, arguments...);
#else
  // clang-format off
  kernel<<<grid, kThreads, 0, stream>>>(arguments...);
  // clang-format on
  return cudaGetLastError();
#endif
}

// One 16-byte store. As an assignment, nvcc merges the store of a whole vector with the elementwise
// one of a partial vector beside it, and up to sm_90 tears both into words.
__device__ __forceinline__ void store_16_bytes(void* address, uint4 words) {
#if defined(VAE_FUSED_EMULATOR)
  *static_cast<uint4*>(address) = words;
#else
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)),
               "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
#endif
}

}  // namespace vae_fused::cuda
