// The only function that launches kernels. The emulated device of the tests replaces it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace vae_fused::cuda {

constexpr int kThreads = 256;  // threads of every block

// Returns the error, which the caller reports, and clears it from the runtime. Otherwise the next
// call to cudaGetLastError would return the error again and attribute it to unrelated work.
inline cudaError_t reported(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// Returns only the error of this launch. Calling `cudaGetLastError` after a launch could also
// return an error that an unrelated earlier call left behind, and would attribute it to
// `vae_fused`.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, cudaStream_t stream,
                   const std::common_type_t<Parameters>&... arguments) {
  if (blocks > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned int>(blocks));
#if defined(VAE_FUSED_EMULATOR)
  return reported(emu::launch(kernel, grid, dim3(kThreads), 0, stream, arguments...));
#else
  const void* addresses[] = {&arguments...};
  return reported(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(kThreads),
                                   const_cast<void**>(addresses), 0, stream));
#endif
}

}  // namespace vae_fused::cuda
