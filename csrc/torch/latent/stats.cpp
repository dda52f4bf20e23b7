// The operator for batch statistics, which checks its arguments, allocates results and launches a
// kernel.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/DeviceGuard.h>

#include <limits>

#include "params/latent_stats.h"
#include "torch/latent/check.h"
#include "torch/latent/ops.h"
#include "torch/launch.h"
#include "torch/reduction.h"

namespace vae_fused {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> latent_stats(const Tensor& mu, const Tensor& raw,
                                                                at::IntArrayRef dim,
                                                                VAE_FUSED_PRIOR_AND_OPTIONS) {
  const Tensors inputs(raw, prior_mean, prior_raw, mask, VAE_FUSED_GIVEN_OPTIONS);
  inputs.check(mu);
  const Reduction batch = parse_reduction("sum", dim, mu.dim());
  const auto shape = batch.shape(mu);
  const auto empty = [&](at::ScalarType dtype) {
    return at::empty_symint(shape, mu.options().dtype(dtype));
  };
  const at::ScalarType arithmetic = arithmetic_dtype(mu);
  const Tensor kl = empty(arithmetic), mean = empty(arithmetic), variance = empty(arithmetic);
  const Tensor clamped = empty(at::kLong), non_finite = empty(at::kLong);
  WithScalars<StatsParams> params;
  params.dtype = dtype_of(mu);
  params.gaussians.options = parse_options(inputs.options.numbers);
  TORCH_CHECK_VALUE(!params.gaussians.options.at_sample,
                    "vae_fused: estimator must be 'analytic' for statistics, got 'sample'");
  if (mu.is_meta()) return {kl, mean, variance, clamped, non_finite};

  const c10::DeviceGuard guard(mu.device());
  if (mu.numel() == 0) {  // no items, or no latent dimensions to fill
    for (const Tensor& t : {kl, mean, variance}) t.fill_(std::numeric_limits<double>::quiet_NaN());
    for (const Tensor& t : {clamped, non_finite}) t.zero_();
    return {kl, mean, variance, clamped, non_finite};
  }
  params.scalars = inputs.options.pointers(params.gaussians.options);
  CallTensors tensors = inputs.bindable(mu);
  // The rows are the items of the batch, so the latent dimensions are the "summed" ones.
  params.space = tensors.bind(params, mu, ~batch.summed & (~DimSet{} >> (64 - mu.dim())));
  params.tasks =
      mu.is_cuda() ? StatsTasks::for_cuda(params.space) : StatsTasks::for_cpu(params.space);
  const Tensor partials = at::empty({params.tasks.partials()}, mu.options().dtype(at::kDouble));
  params.kl = kl.mutable_data_ptr();
  params.mean = mean.mutable_data_ptr();
  params.variance = variance.mutable_data_ptr();
  params.clamped = clamped.mutable_data_ptr<int64_t>();
  params.non_finite = non_finite.mutable_data_ptr<int64_t>();
  params.partials = partials.mutable_data_ptr<double>();
  VAE_FUSED_LAUNCH(stats, params, mu.device());
  return {kl, mean, variance, clamped, non_finite};
}

}  // namespace vae_fused
