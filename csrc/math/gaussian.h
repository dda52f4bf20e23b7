// The diagonal Gaussian posterior q = N(mu, sigma^2), x = ln sigma^2, against the prior N(0, 1):
// each formula once, its derivation above it, its adjoint below it. One latent element at a time.
#pragma once

#include "math/elementary.h"

namespace vae_fused::math {

// ---------------------------------------------------------------------------------------------
// Scale: x = ln sigma^2
//
//   sigma = e^(x/2)      d sigma / dx = sigma / 2
//
// One exponential serves both sigma, for the sample, and sigma^2, for the KL. Halving x is exact.
// Double has the platform's, twice: it is the reference path, and 1/2 ulp matters more than time.
// ---------------------------------------------------------------------------------------------

template <typename T>
struct Scale {
  T sigma, variance;
};

// Above 178 nothing changes any more: in float both are inf, and e^x has long absorbed any x.
template <typename T>
VAE_FUSED_HD T clip(T x) {
  return x > T(178) ? T(178) : x;
}

VAE_FUSED_HD Scale<float> scale_of(float x) {
  const ExpPair pair = exp_pair(0.5f * clip(x));
  return {pair.e, pair.square};
}

VAE_FUSED_HD Scale<double> scale_of(double x) { return {exp_libm(0.5 * x), exp_libm(x)}; }

// ---------------------------------------------------------------------------------------------
// g(x) = e^x - 1 - x and h(x) = e^x - 1 = x + g(x)
//
// The KL below is half of mu^2 + g(x), and h is g's derivative. Both cancel near 0: in fp32
// e^x - 1 - x is off by a factor of 3 at x = 1e-4 and negative at -1e-4. For |x| <= 1 both follow
// instead from
//
//   g(x) = x^2 P(x),   P(x) = (e^x - 1 - x) / x^2 = 1/2 + x/6 + x^2/24 + ...  > 0
//
// a minimax polynomial with relative error 1.0e-8 (float) and 1.7e-17 (double); the square keeps g
// from ever being negative. For |x| > 1 nothing is lost: |h| > 0.63, g > 0.36.
// At x = +inf the direct form would be inf - inf; with the clipped x it is the limit, +inf. Eager
// gives NaN.
// ---------------------------------------------------------------------------------------------

VAE_FUSED_HD float excess_polynomial(float x) {
  float p = 2.77228310e-6f;
  p = p * x + 2.53548224e-5f;
  p = p * x + 1.98440233e-4f;
  p = p * x + 1.38854526e-3f;
  p = p * x + 8.33331048e-3f;
  p = p * x + 4.16667350e-2f;
  p = p * x + 1.66666672e-1f;
  return p * x + 0.5f;
}

VAE_FUSED_HD double excess_polynomial(double x) {
  double p = 2.822393637737856e-15;
  p = p * x + 4.8421067379285081e-14;
  p = p * x + 7.647453589332498e-13;
  p = p * x + 1.146973025196851e-11;
  p = p * x + 1.6059036003725938e-10;
  p = p * x + 2.0876765543838853e-9;
  p = p * x + 2.5052108458444777e-8;
  p = p * x + 2.7557319184099573e-7;
  p = p * x + 2.7557319223655588e-6;
  p = p * x + 2.4801587301688129e-5;
  p = p * x + 1.9841269841270579e-4;
  p = p * x + 1.3888888888888764e-3;
  p = p * x + 8.3333333333333332e-3;
  p = p * x + 4.1666666666666664e-2;
  p = p * x + 1.6666666666666666e-1;
  return p * x + 0.5;
}

template <typename T>
struct Excess {
  T g, h;
};

template <typename T>
VAE_FUSED_HD Excess<T> excess(T x, T exp_x) {
  const bool near = std::fabs(x) <= T(1);
  const T series = x * x * excess_polynomial(x);
  const T direct = exp_x - T(1);
  return {near ? series : direct - clip(x), near ? x + series : direct};
}

// ---------------------------------------------------------------------------------------------
// Sample: z = mu + sigma eps, eps ~ N(0, 1)            (Kingma and Welling 2014, section 2.4)
//
//   dz/dmu = 1      dz/dx = 1/2 sigma eps      dz/deps = sigma
// ---------------------------------------------------------------------------------------------

template <typename T>
VAE_FUSED_HD T sample(T mu, T sigma, T eps) {
  return mu + sigma * eps;
}

// The gradient with respect to x.
template <typename T>
VAE_FUSED_HD T sample_adjoint(T grad_z, T sigma, T eps) {
  return T(0.5) * grad_z * (sigma * eps);
}

// ---------------------------------------------------------------------------------------------
// KL( N(mu, sigma^2) || N(0, 1) ) = 1/2 (mu^2 + sigma^2 - 1 - ln sigma^2)       (ibid., appendix B)
//                                 = 1/2 (mu^2 + g(x))
//
// Two terms that are each non-negative: the KL cannot come out negative.
//
//   dkl/dmu = mu      dkl/dx = 1/2 (sigma^2 - 1) = 1/2 h(x)
// ---------------------------------------------------------------------------------------------

template <typename T>
VAE_FUSED_HD T kl(T mu, T x, T variance) {
  return T(0.5) * (mu * mu + excess(x, variance).g);
}

// The gradient with respect to x.
template <typename T>
VAE_FUSED_HD T kl_adjoint(T grad_kl, T x, T variance) {
  return T(0.5) * grad_kl * excess(x, variance).h;
}

}  // namespace vae_fused::math
