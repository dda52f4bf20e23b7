// Runs the kernel of a call on the device of its tensors.
#pragma once

#include <c10/core/Device.h>

#include "params/device.h"

namespace vae_fused {

// ATen's thread pool, with the signature that the CPU kernels require.
void parallel_for(int64_t n, int64_t grain, cpu::Body body, void* context);

// The current stream of a CUDA device, as a cudaStream_t.
void* current_stream(at::Device device);

// Raises an error if a launch has failed. The message states whether the error comes from earlier
// work.
void check_launch(int error);

// Calls cuda::entry or cpu::entry. In a build without CUDA, there is no `cuda::entry` to link.
#ifdef VAE_FUSED_WITH_CUDA
#define VAE_FUSED_LAUNCH(entry, params, device)                                \
  device.is_cuda() ? check_launch(cuda::entry(params, current_stream(device))) \
                   : cpu::entry(params, parallel_for)
#else
#define VAE_FUSED_LAUNCH(entry, params, device) (void)device, cpu::entry(params, parallel_for)
#endif

}  // namespace vae_fused
