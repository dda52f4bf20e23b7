// The backward operators: check, allocate, launch. One `backward_into` serves both.
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include "torch/bind.h"
#include "torch/check.h"
#include "torch/reduction.h"
#include "torch/rng.h"

namespace vae_fused {
namespace {

// The gradients, written into these tensors; undefined: not required.
struct Gradients {
  Tensor mu, raw, eps, prior_mean, prior_raw;

  bool any() const {
    return mu.defined() || raw.defined() || eps.defined() || prior_mean.defined() ||
           prior_raw.defined();
  }
};

void backward_into(const Gradients& grad, const OptionalTensor& grad_z_in,
                   const OptionalTensor& grad_kl_in, Tensor mu, Tensors of,
                   const OptionalTensor& eps_in, const OptionalTensor& key_in,
                   const Reduction& reduction) {
  Tensor grad_z = grad_z_in.value_or(Tensor()), grad_kl = grad_kl_in.value_or(Tensor());
  of.check(mu);
  // Without grad_z there is no sample to differentiate, and its noise is nobody's concern.
  TORCH_CHECK_VALUE(grad_z.defined() || !grad.eps.defined(),
                    "vae_fused: grad_eps is asked for, but there is no grad_z");
  Noise noise;
  if (grad_z.defined()) {
    c10::SymDimVector shape(mu.sym_sizes());  // after that of the samples, whatever it is
    const int64_t before = std::max<int64_t>(grad_z.dim() - mu.dim(), 0);
    shape.insert(shape.begin(), grad_z.sym_sizes().begin(), grad_z.sym_sizes().begin() + before);
    check_tensor(grad_z, "grad_z", shape, mu.scalar_type(), mu);
    noise = Noise::given(eps_in, key_in);
    noise.check(grad_z);
  }
  if (grad_kl.defined()) check_tensor(grad_kl, "grad_kl", reduction.shape(mu), kl_dtype(mu), mu);
  if (!grad.any() || mu.is_meta() || mu.numel() == 0) return;

  const c10::DeviceGuard guard(mu.device());
  BackwardParams params;
  params.dtype = dtype_of(mu);
  params.of.family = parse_options(of.options);
  if (noise.key.defined()) params.key = key_of(noise.key);
  if (grad_kl.defined()) {
    // The gradient of a sum of a KL of many rows is one value, expanded.
    const auto strides = grad_kl.strides();
    if (std::any_of(strides.begin(), strides.end(), [](int64_t s) { return s != 0; })) {
      grad_kl = grad_kl.contiguous();
    } else {
      params.grad_kl_stride = 0;
    }
    params.grad_kl = grad_kl.const_data_ptr();
    params.kl_scale = reduction.scale(mu);
  }
  grad_z = in_one_dim(grad_z, mu);
  Tensor eps = in_one_dim(noise.eps, mu);
  Gradients bound = grad;
  bound.eps = in_one_dim(grad.eps, mu);
  params.space = bind(params.of, mu, of, grad_z, reduction.summed,
                      {{eps, params.eps},
                       {grad_z, params.grad_z},
                       {bound.mu, params.grad_mu, true},
                       {bound.raw, params.grad_raw, true},
                       {bound.prior_mean, params.grad_prior_mean, true},
                       {bound.prior_raw, params.grad_prior_raw, true},
                       {bound.eps, params.grad_eps, true}});
  launch(params, mu.device());
  copy_back(bound.mu, grad.mu);
  copy_back(bound.raw, grad.raw);
  copy_back(bound.prior_mean, grad.prior_mean);
  copy_back(bound.prior_raw, grad.prior_raw);
  copy_back(bound.eps, grad.eps);
}

// A gradient of `t`, if it is wanted. That of eps is in the shape of grad_z.
Tensor wanted(bool wanted, const OptionalTensor& t) {
  return wanted && t.has_value() ? prepared(at::empty_like(*t)) : Tensor();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> reparameterize_kl_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& mu,
    const OptionalTensor& raw, VAE_FUSED_NOISE, VAE_FUSED_REDUCTION, VAE_FUSED_FAMILY,
    std::array<bool, 5> output_mask) {
  const Gradients grad{wanted(output_mask[0], mu), wanted(output_mask[1], raw),
                       wanted(output_mask[2], grad_z), wanted(output_mask[3], prior_mean),
                       wanted(output_mask[4], prior_raw)};
  backward_into(grad, grad_z, grad_kl, mu, {raw, prior_mean, prior_raw, mask, options}, eps, key,
                parse_reduction(reduction, dim, mu.dim()));
  return {grad.mu, grad.raw, grad.eps, grad.prior_mean, grad.prior_raw};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> reparameterize_kl_moments_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& h,
    int64_t packed_dim, VAE_FUSED_NOISE, VAE_FUSED_REDUCTION, VAE_FUSED_FAMILY,
    std::array<bool, 4> output_mask) {
  const auto [mu, raw] = unpack(h, packed_dim);
  Gradients grad{Tensor(), Tensor(), wanted(output_mask[1], grad_z),
                 wanted(output_mask[2], prior_mean), wanted(output_mask[3], prior_raw)};
  // One tensor, whose halves the kernel writes in place.
  const Tensor grad_h = wanted(output_mask[0], h);
  if (grad_h.defined()) std::tie(grad.mu, grad.raw) = unpack(grad_h, packed_dim);
  backward_into(grad, grad_z, grad_kl, mu, {raw, prior_mean, prior_raw, mask, options}, eps, key,
                parse_reduction(reduction, dim, mu.dim()));
  return {grad_h, grad.eps, grad.prior_mean, grad.prior_raw};
}

}  // namespace vae_fused
