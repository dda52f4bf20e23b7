// Runs a call's kernel where its tensors are.
#pragma once

#include <c10/core/Device.h>

#include "params/device.h"

namespace vae_fused {

// ATen's pool, in the form that the CPU kernels take.
void parallel_for(int64_t n, int64_t grain, cpu::Body body, void* context);

// The current stream of a CUDA device, as a cudaStream_t.
void* current_stream(at::Device device);

// Raises if a launch returned an error, and says whose it is.
void check_launch(int error);

// Calls cuda::entry or cpu::entry. A build without CUDA has no `cuda::entry` to link.
#ifdef VAE_FUSED_WITH_CUDA
#define VAE_FUSED_LAUNCH(entry, params, device)                                \
  device.is_cuda() ? check_launch(cuda::entry(params, current_stream(device))) \
                   : cpu::entry(params, parallel_for)
#else
#define VAE_FUSED_LAUNCH(entry, params, device) (void)device, cpu::entry(params, parallel_for)
#endif

}  // namespace vae_fused
