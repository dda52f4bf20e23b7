#include "torch/launch.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#ifdef VAE_FUSED_WITH_CUDA
#include <c10/core/impl/VirtualGuardImpl.h>
#endif

namespace vae_fused {

void parallel_for(int64_t n, int64_t grain, cpu::Body body, void* context) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

#ifdef VAE_FUSED_WITH_CUDA
void* current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

void check_launch(int error) {
  if (error == 0) return;
  const char* const what = cuda::error_string(error);
  TORCH_CHECK(!cuda::is_of_earlier_work(error), "vae_fused found the device in error: ", what,
              ". A kernel that was launched earlier, not necessarily by vae_fused, has failed; "
              "CUDA_LAUNCH_BLOCKING=1 makes the error appear where that kernel is launched");
  TORCH_CHECK(false, "vae_fused could not launch a kernel: ", what);
}
#endif

}  // namespace vae_fused
