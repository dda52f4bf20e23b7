// Estimates the KL at the sample z as ln q(z) - ln p(z). gaussian.h defines q, p and z.
//
// With w = T eps and d = (z - m) / tau,
//
//   ln q(z) = -1/2 (w^2 + ln sigma^2 + ln 2 pi)      ln p(z) = -1/2 (d^2 + ln tau^2 + ln 2 pi)
//   ln q(z) - ln p(z) = 1/2 (d^2 - w^2 - x)
//
// If T = 1, the mean of this estimate over eps is the KL. Unlike the KL, the estimate can be
// negative. Near q = p, d is close to w, and two measures keep their difference accurate. First,
// d^2 - w^2 is computed as a product. Second, d is not formed from z, whose rounding error would be
// divided by tau, but as (mu - m) / tau + sigma w / tau. With mu = m = 100 and sigma = tau = 0.01,
// the error of the estimate is then 2e-6 instead of 1.5e-3.
//
// The gradient of z is passed on to mu, sigma and eps as for any sample. The additional terms are
//
//   d/dz = d / tau       d/deps = -T w      d/dln sigma^2  = -1/2
//   d/dm = -d / tau                         d/dln tau^2    = 1/2 (1 - d^2)
//
// With stop_q the parameters of q are treated as constants in ln q, which then depends only on z,
// through w = (z - constant mu) / constant sigma. The omitted part of the gradient, the score of q,
// has a mean of 0 ("sticking the landing", Roeder et al. 2017). The terms that differ from those
// above are
//
//   d/dmu = -w / sigma      d/dln sigma^2 = -w^2 / 2
//
// and they are added to the gradient through d. The term -w^2 / 2 is computed directly. If
// -w / sigma were passed on through z, it could overflow before it is multiplied by sigma again.
// If q = p, the terms of the gradient add up to 0 for all z.
#pragma once

#include "math/latent/gaussian.h"

namespace vae_fused::math {

template <typename Options, typename F>
VAE_FUSED_HD F relative_sample(const Options& o, F mu, F sigma, const Prior<F>& p, F eps) {
  return (mu - p.mean) * p.precision + sigma * (o.temperature * eps) * p.precision;
}

// `d` is (z - m) / tau, and x is ln sigma^2 - ln tau^2. An infinite x would give inf - inf, so x is
// bounded.
template <typename Options, typename F>
VAE_FUSED_HD F log_ratio_times_two(const Options& o, F d, F x, F eps) {
  const F w = o.temperature * eps;
  return (d - w) * (d + w) - smaller(F(kLargest<number_t<F>> / 4), x);
}

// The derivative with respect to z, and the additional ones with respect to mu, eps, ln sigma^2, m
// and ln tau^2.
template <typename F>
struct LogRatioAdjoint {
  F z, mu, eps, x, mean, prior_x;
};

template <typename Options, typename F>
VAE_FUSED_HD LogRatioAdjoint<F> log_ratio_adjoint(const Options& o, bool stop_q, F d, F precision,
                                                  F sigma, F eps, F grad) {
  const F w = o.temperature * eps, slope = d * precision;
  const F q = o.to_posterior * grad, p = o.to_prior * grad;
  const F mu = stop_q ? -q * w * precision_of(sigma) : F(0);
  const F x = F(-0.5) * (stop_q ? q * w * w : q);
  return {q * slope, mu, -q * o.temperature * w, x, -p * slope, F(0.5) * p * (F(1) - d * d)};
}

// The derivative with respect to x is doubled, see `undo_doubling`.
template <typename T, typename F>
VAE_FUSED_HD LogRatioAdjoint<F> log_ratio_adjoint(const DefaultOptions<T>&, bool stop_q, F z, F,
                                                  F sigma, F eps, F grad) {
  const F mu = stop_q ? -grad * eps * precision_of(sigma) : F(0);
  const F x = stop_q ? -grad * eps * eps : -grad;
  return {grad * z, mu, -grad * eps, x, F(0), F(0)};
}

}  // namespace vae_fused::math
