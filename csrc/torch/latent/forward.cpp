// The forward operators, which check their arguments, allocate results and launch a kernel. Every
// overload calls `forward`.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include "torch/latent/check.h"
#include "torch/latent/ops.h"
#include "torch/launch.h"
#include "torch/reduction.h"
#include "torch/rng.h"

namespace vae_fused {
namespace {

struct Outputs {
  Tensor z, kl, key;
};

// Without `noise`, there is no sample. Without `reduction`, there is no KL.
Outputs forward(Tensor mu, Tensors inputs, std::optional<Noise> noise,
                std::optional<Reduction> reduction, at::OptionalSymIntArrayRef sample_shape) {
  inputs.check(mu);
  WithScalars<ForwardParams> params;
  params.dtype = dtype_of(mu);
  params.gaussians.options = parse_options(inputs.options.numbers);
  const bool at_sample = params.gaussians.options.at_sample && reduction;
  TORCH_CHECK_VALUE(
      !at_sample || noise,
      "vae_fused: estimator must be 'analytic' for a KL without a sample, got 'sample'");

  Outputs out;
  c10::SymDimVector shape(mu.sym_sizes());
  if (sample_shape.has_value()) {
    shape.insert(shape.begin(), sample_shape->begin(), sample_shape->end());
  }
  if (noise) {
    out.z = with_huge_pages(sample_shape.has_value() ? at::empty_symint(shape, mu.options())
                                                     : at::empty_like(mu));
    noise->check(mu, sample_shape.value_or(c10::SymIntArrayRef{}));
    if (noise->reserve) out.key = at::empty({2}, mu.options().dtype(at::kUInt64));
  }
  const double factor = reduction && !mu.is_meta() ? reduction->factor(mu) : 1.0;
  if (at_sample && sample_shape.has_value()) {
    // Each sample has its own KL, so the samples become elements of the call.
    TORCH_CHECK_VALUE(shape.size() <= 64,
                      "vae_fused: tensors must have at most 64 dimensions, got ", shape.size());
    reduction = reduction->after(static_cast<int64_t>(sample_shape->size()));
    mu = mu.expand_symint(shape);
    inputs = inputs.expanded(shape);
  }
  if (reduction) {
    out.kl = at::empty_symint(reduction->shape(mu), mu.options().dtype(arithmetic_dtype(mu)));
  }
  if (mu.is_meta()) return out;

  const c10::DeviceGuard guard(mu.device());
  params.scalars = inputs.options.pointers(params.gaussians.options);
  params.kl.factor = factor;
  if (mu.numel() == 0) {  // a sum is 0 and a mean is NaN, as in torch
    if (out.kl.defined()) out.kl.fill_(0.0 * params.kl.factor);
    if (out.key.defined()) out.key.zero_();
    return out;
  }
  CallTensors tensors = inputs.bindable(mu);
  if (noise) tensors.add("eps", noise->eps);
  tensors.add("z", out.z);
  params.gaussians.samples = samples_of(out.z, mu);
  params.space = tensors.bind(params, mu, reduction.value_or(Reduction{}).summed);
  Tensor partials;
  if (out.kl.defined()) {
    params.kl.data = out.kl.mutable_data_ptr();
    if (params.space.tiles_per_row > 1) {
      partials = at::empty({params.space.tiles}, mu.options().dtype(at::kDouble));
      params.kl.partials = partials.mutable_data_ptr<double>();
    }
  }
  if (noise && noise->key.defined()) params.key = key_of(noise->key);
  if (noise && noise->reserve) {  // last, because no check may reject the call afterwards
    params.key = reserve_key(noise->generator, mu.device(), noise_blocks(out.z));
    params.key_out = static_cast<uint64_t*>(out.key.mutable_data_ptr());
  }
  VAE_FUSED_LAUNCH(forward, params, mu.device());
  tensors.copy_back();
  return out;
}

}  // namespace

std::pair<Tensor, Tensor> unpack(const Tensor& h, int64_t packed_dim) {
  const int64_t d = packed_dim + (packed_dim < 0 ? h.dim() : 0);
  TORCH_CHECK_INDEX(d >= 0 && d < h.dim(),
                    "vae_fused: packed_dim must be a dimension of h, of shape ", h.sym_sizes(),
                    ", got ", packed_dim);
  const c10::SymInt size = h.sym_size(d);
  TORCH_CHECK_VALUE(size % 2 == 0, "vae_fused: h must have an even size in dimension ", packed_dim,
                    ", for mu and the raw scale, got shape ", h.sym_sizes());
  return {h.narrow_symint(d, 0, size / 2), h.narrow_symint(d, size / 2, size / 2)};
}

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE,
                                             VAE_FUSED_REDUCTION, VAE_FUSED_PRIOR_AND_OPTIONS,
                                             VAE_FUSED_SAMPLES) {
  Outputs out =
      forward(mu, {raw, prior_mean, prior_raw, mask, VAE_FUSED_GIVEN_OPTIONS},
              Noise::given(eps, key), parse_reduction(reduction, dim, mu.dim()), sample_shape);
  return {out.z, out.kl};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_generator(const Tensor& mu, const Tensor& raw,
                                                               OptionalGenerator generator,
                                                               VAE_FUSED_REDUCTION,
                                                               VAE_FUSED_PRIOR_AND_OPTIONS,
                                                               VAE_FUSED_SAMPLES) {
  Outputs out =
      forward(mu, {raw, prior_mean, prior_raw, mask, VAE_FUSED_GIVEN_OPTIONS},
              Noise::reserved(generator), parse_reduction(reduction, dim, mu.dim()), sample_shape);
  return {out.z, out.kl, out.key};
}

Tensor reparameterize(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE, VAE_FUSED_OPTIONS,
                      VAE_FUSED_SAMPLES) {
  return forward(mu, {raw, std::nullopt, std::nullopt, mask, VAE_FUSED_GIVEN_OPTIONS},
                 Noise::given(eps, key), std::nullopt, sample_shape)
      .z;
}

std::tuple<Tensor, Tensor> reparameterize_generator(const Tensor& mu, const Tensor& raw,
                                                    OptionalGenerator generator, VAE_FUSED_OPTIONS,
                                                    VAE_FUSED_SAMPLES) {
  Outputs out = forward(mu, {raw, std::nullopt, std::nullopt, mask, VAE_FUSED_GIVEN_OPTIONS},
                        Noise::reserved(generator), std::nullopt, sample_shape);
  return {out.z, out.key};
}

Tensor gaussian_kl(const Tensor& mu, const OptionalTensor& raw, VAE_FUSED_REDUCTION,
                   VAE_FUSED_PRIOR_AND_OPTIONS) {
  return forward(mu, {raw, prior_mean, prior_raw, mask, VAE_FUSED_GIVEN_OPTIONS}, std::nullopt,
                 parse_reduction(reduction, dim, mu.dim()), std::nullopt)
      .kl;
}

std::tuple<Tensor, Tensor> reparameterize_kl_moments(const Tensor& h, int64_t packed_dim,
                                                     VAE_FUSED_NOISE, VAE_FUSED_REDUCTION,
                                                     VAE_FUSED_PRIOR_AND_OPTIONS,
                                                     VAE_FUSED_SAMPLES) {
  const auto [mu, raw] = unpack(h, packed_dim);
  const GivenOptions given = VAE_FUSED_GIVEN_OPTIONS;
  return reparameterize_kl(mu, raw, eps, key, reduction, dim, prior_mean, prior_raw, mask,
                           VAE_FUSED_OPTION_ARGUMENTS, sample_shape);
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_moments_generator(
    const Tensor& h, int64_t packed_dim, OptionalGenerator generator, VAE_FUSED_REDUCTION,
    VAE_FUSED_PRIOR_AND_OPTIONS, VAE_FUSED_SAMPLES) {
  const auto [mu, raw] = unpack(h, packed_dim);
  const GivenOptions given = VAE_FUSED_GIVEN_OPTIONS;
  return reparameterize_kl_generator(mu, raw, generator, reduction, dim, prior_mean, prior_raw,
                                     mask, VAE_FUSED_OPTION_ARGUMENTS, sample_shape);
}

}  // namespace vae_fused
