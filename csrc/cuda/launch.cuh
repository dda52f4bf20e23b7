// The one way a kernel is launched. The emulated device of the tests replaces it.
#pragma once

#include <cuda_runtime.h>

namespace vae_fused::cuda {

constexpr int kThreads = 256;  // of every block

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, cudaStream_t stream,
                   Arguments&&... arguments) {
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

}  // namespace vae_fused::cuda
