// Maps a call of the latent family to its tiles.
#pragma once

#include <algorithm>

#include "cpu/isa_table.h"
#include "params/latent.h"

namespace vae_fused::cpu {

// The context of a body: a call, and data that its tiles share.
template <typename Params>
struct Task {
  const Params& params;
  Key key;
  math::LatentOptions<float> options;

  Task(const Params& params, const Key& key)
      : params(params), key(key), options(math::narrowed<float>(params.gaussians.options)) {}

  VAE_FUSED_HD const math::LatentOptions<float>& options_of(float) const { return options; }
  VAE_FUSED_HD const math::LatentOptions<double>& options_of(double) const {
    return params.gaussians.options;
  }
};

// The kernels compute twice the KL of each element, so the sums are multiplied by half the factor.
VAE_FUSED_HD RowSums kl_sums(const ForwardParams& p) {
  RowSums sums = p.kl;
  sums.factor *= 0.5;
  return sums;
}

// Calls run(params) with options that include the scalars that the call passes as tensors. The CPU
// can read these tensors at any time, so kernel selection depends only on the values of the
// options.
template <typename Params, typename Run>
void with_scalars_read(const WithScalars<Params>& given, const Run& run) {
  if (!given.scalars.any()) return run(static_cast<const Params&>(given));
  Params params = given;
  if (params.dtype == DType::kFloat64) {
    math::read_scalars<double>(given.scalars, options_of(params));
  } else {
    math::read_scalars<float>(given.scalars, options_of(params));
  }
  run(params);
}

struct LatentBodies {
  Bodies with_defaults, general;
};
VAE_FUSED_ISA_TABLE(LatentBodies, kForward)
VAE_FUSED_ISA_TABLE(LatentBodies, kBackward)

inline const LatentBodies& bodies_of(const ForwardParams&) {
  return VAE_FUSED_TABLE_IN_USE(kForward);
}
inline const LatentBodies& bodies_of(const BackwardParams&) {
  return VAE_FUSED_TABLE_IN_USE(kBackward);
}

// Whether a call has a kernel with DefaultOptions. Such a kernel cannot compute the gradient of eps
// if the sample also estimates the KL.
inline bool has_default_kernel(const ForwardParams& params) {
  return has_default_options(params.gaussians);
}
inline bool has_default_kernel(const BackwardParams& params) {
  const bool at_sample = params.gaussians.options.at_sample && params.grad_kl.data;
  return has_default_options(params.gaussians) && !(at_sample && params.grad_eps.data);
}

// Returns the function that computes the tiles of a call, given its Task.
template <typename Params>
Body body_of(const Params& params) {
  const LatentBodies& bodies = bodies_of(params);
  return (has_default_kernel(params) ? bodies.with_defaults : bodies.general)[params.dtype];
}

template <typename Params>
void run(const Params& params, const Key& key, ParallelFor parallel_for) {
  Task<Params> task(params, key);
  const int64_t grain = kGrain / std::clamp<int64_t>(params.gaussians.samples, 1, kGrain);
  parallel_for(params.space.tiles, grain, body_of(params), &task);
}

}  // namespace vae_fused::cpu
