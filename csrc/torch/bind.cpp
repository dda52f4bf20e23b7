#include "torch/bind.h"

#include <ATen/Parallel.h>

#ifdef VAE_FUSED_WITH_CUDA
#include <c10/core/impl/VirtualGuardImpl.h>
#endif

namespace vae_fused {

Space bind(const std::vector<int64_t>& sizes, DimSet summed, const std::vector<Bound>& bounds) {
  Space space;
  for (const bool copy : {false, true}) {
    std::vector<Binding> bindings;
    for (const Bound& b : bounds) {
      if (!b.tensor->defined()) continue;
      if (copy) *b.tensor = b.tensor->contiguous();
      void* data =
          b.written ? b.tensor->mutable_data_ptr() : const_cast<void*>(b.tensor->const_data_ptr());
      bindings.push_back({data, b.tensor->strides().data() + b.before, b.operand});
    }
    if (make_space(sizes, summed, bindings, space)) return space;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, "vae_fused: summed and kept dimensions alternate more than ",
                              kMaxDims, " times in a ", sizes.size(),
                              "-d tensor; move the summed dimensions to the end");
}

Tensor in_one_dim(const Tensor& t, const Tensor& mu) {
  if (!t.defined() || t.dim() == mu.dim()) return t;
  std::vector<int64_t> sizes = mu.sizes().vec();
  sizes.insert(sizes.begin(), t.numel() / mu.numel());
  return t.reshape(sizes);
}

Bound sampled(Tensor& t, Sampled& operand, const Tensor& mu, bool written) {
  return {&t, &operand, written, t.defined() ? t.dim() - mu.dim() : 0};
}

int64_t samples_of(const Tensor& t, const Tensor& mu) {
  return t.defined() && t.dim() > mu.dim() ? t.size(0) : 1;
}

void set_step(Sampled& operand, const Tensor& t, const Tensor& mu) {
  if (t.defined() && t.dim() > mu.dim()) operand.step = t.stride(0);
}

void copy_back(const Tensor& bound, const Tensor& result) {
  if (!bound.defined() || bound.const_data_ptr() == result.const_data_ptr()) return;
  result.copy_(bound.reshape_symint(result.sym_sizes()));
}

namespace {

void parallel_for(int64_t n, int64_t grain, cpu::Body body, void* context) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

#ifdef VAE_FUSED_WITH_CUDA
void* current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

void check_launch(int error) {
  TORCH_CHECK(error == 0, "vae_fused: CUDA error: ", cuda::error_string(error));
}
#endif

}  // namespace

void launch(const ForwardParams& params, [[maybe_unused]] at::Device device) {
#ifdef VAE_FUSED_WITH_CUDA
  if (device.is_cuda()) return check_launch(cuda::forward(params, current_stream(device)));
#endif
  cpu::forward(params, parallel_for);
}

void launch(const BackwardParams& params, [[maybe_unused]] at::Device device) {
#ifdef VAE_FUSED_WITH_CUDA
  if (device.is_cuda()) return check_launch(cuda::backward(params, current_stream(device)));
#endif
  cpu::backward(params, parallel_for);
}

void launch_forward(const MultiParams& params, [[maybe_unused]] at::Device device) {
#ifdef VAE_FUSED_WITH_CUDA
  if (device.is_cuda()) return check_launch(cuda::forward_multi(params, current_stream(device)));
#endif
  cpu::forward_multi(params, parallel_for);
}

void launch_backward(const MultiParams& params, [[maybe_unused]] at::Device device) {
#ifdef VAE_FUSED_WITH_CUDA
  if (device.is_cuda()) return check_launch(cuda::backward_multi(params, current_stream(device)));
#endif
  cpu::backward_multi(params, parallel_for);
}

}  // namespace vae_fused
