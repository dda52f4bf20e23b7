// The backward operators, which check their arguments, allocate results and launch a kernel. Both
// call `backward_into`.
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include "torch/latent/check.h"
#include "torch/latent/ops.h"
#include "torch/launch.h"
#include "torch/reduction.h"
#include "torch/rng.h"

namespace vae_fused {
namespace {

// The tensors into which the gradients are written. A gradient that is not required is undefined.
struct Gradients {
  Tensor mu, raw, eps, prior_mean, prior_raw;

  bool any() const {
    return mu.defined() || raw.defined() || eps.defined() || prior_mean.defined() ||
           prior_raw.defined();
  }
};

// Returns the sizes of all dimensions before the last `ndim`.
c10::SymDimVector leading_sizes(const Tensor& t, int64_t ndim) {
  const auto sizes = t.sym_sizes();
  return {sizes.begin(), sizes.begin() + std::max<int64_t>(t.dim() - ndim, 0)};
}

void backward_into(const Gradients& grad, const OptionalTensor& grad_z_in,
                   const OptionalTensor& grad_kl_in, const Tensor& mu, const Tensors& inputs,
                   const OptionalTensor& eps_in, const OptionalTensor& key_in,
                   const Reduction& reduction) {
  Tensor grad_z = grad_z_in.value_or(Tensor()), grad_kl = grad_kl_in.value_or(Tensor());
  inputs.check(mu);
  WithScalars<BackwardParams> params;
  params.dtype = dtype_of(mu);
  params.gaussians.options = parse_options(inputs.options.numbers);
  // Without grad_z, and without grad_kl for a KL estimated from samples, there is no sample to
  // differentiate, and no noise is needed.
  const bool at_sample = params.gaussians.options.at_sample && grad_kl.defined();
  const bool has_samples = grad_z.defined() || at_sample;
  TORCH_CHECK_VALUE(has_samples || !grad.eps.defined(),
                    "vae_fused: grad_z must be given for a gradient of eps, got none");
  std::vector<c10::SymInt> kl_shape = reduction.shape(mu);
  c10::SymDimVector samples;  // the shape of the samples
  if (grad_z.defined()) {
    samples = leading_sizes(grad_z, mu.dim());
    c10::SymDimVector shape(samples);
    shape.append(mu.sym_sizes().begin(), mu.sym_sizes().end());
    check_tensor(grad_z, "grad_z", shape, mu.scalar_type(), mu);
  } else if (at_sample) {
    samples = leading_sizes(grad_kl, static_cast<int64_t>(kl_shape.size()));
  }
  Noise noise;
  if (has_samples) {
    noise = Noise::given(eps_in, key_in);
    noise.check(mu, samples);
  }
  if (at_sample) kl_shape.insert(kl_shape.begin(), samples.begin(), samples.end());
  if (grad_kl.defined()) check_tensor(grad_kl, "grad_kl", kl_shape, arithmetic_dtype(mu), mu);
  if (!grad.any() || mu.is_meta() || mu.numel() == 0) return;

  const c10::DeviceGuard guard(mu.device());
  params.scalars = inputs.options.pointers(params.gaussians.options);
  if (noise.key.defined()) params.key = key_of(noise.key);
  if (grad_kl.defined()) {
    // The gradient of a sum over the KLs of many rows is one expanded value.
    const auto strides = grad_kl.strides();
    if (std::any_of(strides.begin(), strides.end(), [](int64_t s) { return s != 0; })) {
      grad_kl = grad_kl.contiguous();
    } else {
      params.grad_kl.stride = 0;
    }
    params.grad_kl.data = grad_kl.const_data_ptr();
    params.grad_kl.factor = reduction.factor(mu);
  }
  CallTensors tensors = inputs.bindable(mu);
  tensors.add("eps", noise.eps);
  tensors.add("grad_z", grad_z);
  tensors.add("grad_mu", grad.mu);
  tensors.add("grad_raw", grad.raw);
  tensors.add("grad_prior_mean", grad.prior_mean);
  tensors.add("grad_prior_raw", grad.prior_raw);
  tensors.add("grad_eps", grad.eps);
  for (const c10::SymInt& size : samples) params.gaussians.samples *= size.expect_int();
  params.space = tensors.bind(params, mu, reduction.summed);
  VAE_FUSED_LAUNCH(backward, params, mu.device());
  tensors.copy_back();
}

// Allocates the gradient of `t` if it is required.
Tensor empty_grad(bool needs_grad, const OptionalTensor& t) {
  return needs_grad && t.has_value() ? with_huge_pages(at::empty_like(*t)) : Tensor();
}

// Allocates the gradient of eps, in the layout of grad_z if there is one.
Tensor empty_grad_eps(bool needs_grad, const OptionalTensor& grad_z, const OptionalTensor& eps) {
  return empty_grad(needs_grad, grad_z.has_value() ? grad_z : eps);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> reparameterize_kl_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& mu,
    const OptionalTensor& raw, VAE_FUSED_NOISE, VAE_FUSED_REDUCTION, VAE_FUSED_PRIOR_AND_OPTIONS,
    std::array<bool, 5> output_mask) {
  const Gradients grad{empty_grad(output_mask[0], mu), empty_grad(output_mask[1], raw),
                       empty_grad_eps(output_mask[2], grad_z, eps),
                       empty_grad(output_mask[3], prior_mean),
                       empty_grad(output_mask[4], prior_raw)};
  backward_into(grad, grad_z, grad_kl, mu,
                {raw, prior_mean, prior_raw, mask, VAE_FUSED_GIVEN_OPTIONS}, eps, key,
                parse_reduction(reduction, dim, mu.dim()));
  return {grad.mu, grad.raw, grad.eps, grad.prior_mean, grad.prior_raw};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> reparameterize_kl_moments_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& h,
    int64_t packed_dim, VAE_FUSED_NOISE, VAE_FUSED_REDUCTION, VAE_FUSED_PRIOR_AND_OPTIONS,
    std::array<bool, 4> output_mask) {
  const auto [mu, raw] = unpack(h, packed_dim);
  Gradients grad{Tensor(), Tensor(), empty_grad_eps(output_mask[1], grad_z, eps),
                 empty_grad(output_mask[2], prior_mean), empty_grad(output_mask[3], prior_raw)};
  // grad_h is one tensor, whose halves the kernel writes in place.
  const Tensor grad_h = empty_grad(output_mask[0], h);
  if (grad_h.defined()) std::tie(grad.mu, grad.raw) = unpack(grad_h, packed_dim);
  backward_into(grad, grad_z, grad_kl, mu,
                {raw, prior_mean, prior_raw, mask, VAE_FUSED_GIVEN_OPTIONS}, eps, key,
                parse_reduction(reduction, dim, mu.dim()));
  return {grad_h, grad.eps, grad.prior_mean, grad.prior_raw};
}

}  // namespace vae_fused
