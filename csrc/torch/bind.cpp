#include "torch/bind.h"

#include <ATen/Parallel.h>

#ifdef VAE_FUSED_WITH_CUDA
#include <c10/core/impl/VirtualGuardImpl.h>
#endif

namespace vae_fused {

Space bind(Gaussians& gaussians, Tensor& mu, Tensors& of, const Tensor& z, DimSet summed,
           std::initializer_list<Bound> more) {
  const int64_t ndim = mu.dim();
  gaussians.samples = z.defined() && z.dim() > ndim ? z.size(0) : 1;
  c10::SmallVector<Bound, kMaxBindings> bounds{{mu, gaussians.mu},
                                               {of.raw, gaussians.raw},
                                               {of.prior_mean, gaussians.prior_mean},
                                               {of.prior_raw, gaussians.prior_raw},
                                               {of.mask, gaussians.mask}};
  bounds.append(more);
  Space space;
  for (const bool copy : {false, true}) {
    std::vector<Binding> bindings;
    bindings.reserve(bounds.size());
    for (const Bound& b : bounds) {
      Tensor& t = *b.tensor;
      if (!t.defined()) continue;
      if (copy) t = t.contiguous();
      void* data = b.written ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
      const int64_t before = t.dim() - ndim;
      bindings.push_back({data, t.strides().data() + before, b.operand});
      if (before > 0) *b.step = t.stride(0);
    }
    if (make_space(mu.sizes().vec(), summed, bindings, space)) return space;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, "vae_fused: summed and kept dimensions alternate more than ",
                              kMaxDims, " times in a ", ndim,
                              "-d tensor; move the summed dimensions to the end");
}

Tensor prepared(Tensor result) {
  if (result.is_cpu()) cpu::prepare_pages(result.mutable_data_ptr(), result.nbytes());
  return result;
}

Tensor in_one_dim(const Tensor& t, const Tensor& mu) {
  if (!t.defined() || t.dim() == mu.dim()) return t;
  std::vector<int64_t> sizes = mu.sizes().vec();
  sizes.insert(sizes.begin(), t.numel() / mu.numel());
  return t.reshape(sizes);
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
  if (error == 0) return;
  const char* const what = cuda::error_string(error);
  TORCH_CHECK(!cuda::is_of_earlier_work(error), "vae_fused found the device in error: ", what,
              ". A kernel that was launched earlier, not necessarily by vae_fused, has failed; "
              "CUDA_LAUNCH_BLOCKING=1 makes the error appear where that kernel is launched");
  TORCH_CHECK(false, "vae_fused could not launch a kernel: ", what);
}

#define VAE_FUSED_LAUNCH(entry, params, device)                                \
  device.is_cuda() ? check_launch(cuda::entry(params, current_stream(device))) \
                   : cpu::entry(params, parallel_for)
#else
#define VAE_FUSED_LAUNCH(entry, params, device) (void)device, cpu::entry(params, parallel_for)
#endif

}  // namespace

void launch(const ForwardParams& params, at::Device device) {
  VAE_FUSED_LAUNCH(forward, params, device);
}

void launch(const BackwardParams& params, at::Device device) {
  VAE_FUSED_LAUNCH(backward, params, device);
}

void launch_forward(const MultiParams& params, at::Device device) {
  VAE_FUSED_LAUNCH(forward_multi, params, device);
}

void launch_backward(const MultiParams& params, at::Device device) {
  VAE_FUSED_LAUNCH(backward_multi, params, device);
}

}  // namespace vae_fused
