// The part that the Gaussian, the Laplace and the Student-t likelihoods share. Sigma is either
// computed from the output `raw` by math/scale.h or fixed.
//
//   d = (x - mean) / sigma       -ln p = f(d) + ln sigma + constant
#pragma once

#include "math/likelihood/options.h"
#include "math/scale.h"

namespace vae_fused::math {

template <typename F>
struct Deviation {
  F d, precision, log_sigma;  // 1 / sigma, ln sigma
  F dlog_sigma;               // with respect to raw
};

// 1 / sigma is kept finite where sigma is 0, so that d is 0 where x equals the mean. Where sigma is
// an exponential, 1 / sigma is computed as an exponential too, which saves a square root, a
// reciprocal and their rounding errors.
template <typename Options, typename F>
VAE_FUSED_HD Deviation<F> deviation(const Options& o, F mean, F raw, F x) {
  if (!o.has_raw) return {(x - mean) * F(o.precision), F(o.precision), F(0), F(0)};
  using T = number_t<F>;
  if (o.scale.base == ScaleBase::kExp && !has_floor(o.scale)) {
    const Clamped<F> c = soft_or_hard_clamp(o.scale, raw);
    const F t = o.scale.gain * c.x + o.scale.shift, e = exp(-t) * F(T(1) / o.scale.unit);
    const F p = smaller(F(T(1) / kLeastNormal<T>), e);
    return {(x - mean) * p, p, t + F(T(0.5) * o.scale.log_unit_squared), o.scale.gain * c.dx};
  }
  const Scale<F> scale = scale_of(o.scale, raw);
  const F p = reciprocal(larger(F(kLeastNormal<T>), scale.sigma));
  return {(x - mean) * p, p, F(0.5) * scale.x, F(0.5) * scale.dx};
}

}  // namespace vae_fused::math
