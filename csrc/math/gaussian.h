// The diagonal Gaussian posterior q = N(mu, sigma^2), its prior p = N(m, tau^2), the sample and the
// KL: each formula once, its derivation above it, its adjoint below it. One latent element at a
// time.
//
// What depends on a choice of the call has two forms, by its first argument: a Family, with all
// that may be chosen, and Plain, the usual call (logvar, standard normal prior), which is the same
// with constants in it that the compiler folds away.
#pragma once

#include "math/scale.h"

namespace vae_fused::math {

// ---------------------------------------------------------------------------------------------
// Posterior: mu, sigma and x = ln sigma^2 from the network's outputs
//
// Plain: the output is x itself,  sigma = e^(x/2),  d sigma / dx = sigma / 2. One pair of
// exponentials serves both sigma, for the sample, and sigma^2, for the KL. Halving x is exact.
// ---------------------------------------------------------------------------------------------

template <typename T>
struct Posterior {
  T mu, dmu;  // derivatives with respect to the network's outputs
  Scale<T> scale;
  T variance;  // of Plain; the KL of a Family goes by sigma / tau instead
};

// Above 178 nothing changes any more: in float both are inf, and e^x has long absorbed any x.
template <typename T>
VAE_FUSED_HD T clip(T x) {
  return x > T(178) ? T(178) : x;
}

VAE_FUSED_HD ExpPair<float> exponentials(float x) { return exp_pair(0.5f * clip(x)); }
VAE_FUSED_HD ExpPair<double> exponentials(double x) { return exp_pair(0.5 * x); }

// Of 16 bits, on a GPU, the exponentials may be approximate, too: for |x| <= 20 the KL of an
// element is then within 3e-6 of its size.
template <bool coarse, typename T>
VAE_FUSED_HD ExpPair<T> exponentials_for(T x) {
  if constexpr (coarse && kHasApproximations) {
    const T e = ex2_approx(T(0.7213475204444817) * x);
    return {e, e * e};
  } else {
    return exponentials(x);
  }
}

template <bool coarse = false, int N, typename T>
VAE_FUSED_HD void posterior(const Plain<T>&, const T (&mu)[N], const T (&raw)[N],
                            Posterior<T> (&out)[N]) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) {
    const ExpPair<T> pair = exponentials_for<coarse>(raw[j]);
    out[j] = {mu[j], T(1), {pair.e, raw[j], T(0.5) * pair.e, T(1)}, pair.square};
  }
}

template <bool coarse = false, int N, typename T>
VAE_FUSED_HD void posterior(const Family<T>& f, const T (&mu)[N], const T (&raw)[N],
                            Posterior<T> (&out)[N]) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) out[j] = {mu[j], T(1), scale_of(f.posterior, raw[j]), T(0)};
  if (f.mu_soft_clamp == T(0)) return;
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) {
    const Limited<T> limited = soft_clamp(mu[j], f.mu_soft_clamp, f.per_mu_soft_clamp);
    out[j].mu = limited.x;
    out[j].dmu = limited.dx;
  }
}

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
// Sample: z = mu + T sigma eps, eps ~ N(0, 1)          (Kingma and Welling 2014, section 2.4)
//
//   dz/dmu = 1      dz/dsigma = T eps      dz/deps = T sigma
// ---------------------------------------------------------------------------------------------

template <typename F, typename T>
VAE_FUSED_HD T sample(const F& f, T mu, T sigma, T eps) {
  return mu + f.temperature * sigma * eps;
}

// The gradient with respect to what sigma is a function of.
template <typename F, typename T>
VAE_FUSED_HD T sample_adjoint(const F& f, T grad_z_eps, T dsigma) {
  return f.temperature * grad_z_eps * dsigma;
}

// ---------------------------------------------------------------------------------------------
// Prior, and the posterior in its units:
//
//   d = (mu - m) / tau      x = ln sigma^2 - ln tau^2      r^2 = (sigma / tau)^2 = e^x
//
// r^2 is the square of a quotient, where e^x would magnify the rounding of x; but where sigma or
// tau leaves the normal range only x can tell. There 1 / tau is finite, so that d is 0 where mu is
// m.
// ---------------------------------------------------------------------------------------------

template <typename T>
struct Prior {
  T mean, precision, x, dx;  // m, 1 / tau, ln tau^2 and its derivative
};

template <typename T>
constexpr T kSmallest = std::numeric_limits<T>::min();  // a power of two, as is its reciprocal

template <typename T>
VAE_FUSED_HD bool in_range(T x) {
  return x > kSmallest<T> && x < T(1) / kSmallest<T>;
}

template <typename T>
VAE_FUSED_HD T precision_of(T tau) {
  return reciprocal(tau < kSmallest<T> ? kSmallest<T> : tau);
}

// Without a tensor for its scale: the family's numbers.
template <int N, typename T>
VAE_FUSED_HD void prior(const Family<T>& f, bool has_raw, const T (&mean)[N], const T (&raw)[N],
                        Prior<T> (&out)[N]) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) out[j] = {mean[j], f.prior_precision, f.prior_x, T(0)};
  if (!has_raw) return;
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) {
    const Scale<T> tau = scale_of(f.prior, raw[j]);
    out[j] = {mean[j], precision_of(tau.sigma), tau.x, tau.dx};
  }
}

template <typename T>
struct Relative {
  T d, x, variance;
};

template <typename T>
VAE_FUSED_HD Relative<T> relative(const Plain<T>&, const Posterior<T>& q, const Prior<T>&) {
  return {q.mu, q.scale.x, q.variance};
}

template <typename T>
VAE_FUSED_HD Relative<T> relative(const Family<T>&, const Posterior<T>& q, const Prior<T>& p) {
  const T sigma = q.scale.sigma, r = sigma * p.precision, x = q.scale.x - p.x;
  const bool direct = in_range(sigma) && in_range(p.precision);
  return {(q.mu - p.mean) * p.precision, x, direct ? r * r : exp(x)};
}

// ---------------------------------------------------------------------------------------------
// KL( q || p ) = 1/2 ( (mu - m)^2 / tau^2 + sigma^2 / tau^2 - 1 - ln(sigma^2 / tau^2) )
//              = 1/2 (d^2 + g(x))                                    (ibid., appendix B)
//
// Two terms that are each non-negative: the KL cannot come out negative.
//
//   dkl/dmu = d / tau       dkl/dln sigma^2 =  1/2 h(x)
//   dkl/dm  = -d / tau      dkl/dln tau^2   = -1/2 (h(x) + d^2)
//
// Linear: 1/2 (d^2 + c - x), where mu is a point at which p is asked for. Then r^2 = e^x is already
// in d^2, on average, and h(x) = -1. It is -ln p(mu) for sigma = 1 and c = ln 2 pi.
//
// An element counts free_bits at least; below that its gradient is 0. `linear` is an argument
// beside the family, f.linear or a constant, for loops that are compiled for both.
// ---------------------------------------------------------------------------------------------

template <typename T>
VAE_FUSED_HD T kl(const Plain<T>&, bool, const Relative<T>& r) {
  return T(0.5) * (r.d * r.d + excess(r.x, r.variance).g);
}

template <typename T>
VAE_FUSED_HD T kl(const Family<T>& f, bool linear, const Relative<T>& r) {
  const T g = linear ? f.constant - r.x : excess(r.x, r.variance).g;
  const T value = T(0.5) * (r.d * r.d + g);
  return value < f.free_bits ? f.free_bits : value;
}

// With respect to mu, ln sigma^2, m and ln tau^2.
template <typename T>
struct KlAdjoint {
  T mu, x, mean, prior_x;
};

template <typename T>
VAE_FUSED_HD KlAdjoint<T> kl_adjoint(const Plain<T>&, bool, const Relative<T>& r, T, T grad) {
  return {grad * r.d, T(0.5) * grad * excess(r.x, r.variance).h, T(0), T(0)};
}

template <typename T>
VAE_FUSED_HD KlAdjoint<T> kl_adjoint(const Family<T>& f, bool linear, const Relative<T>& r,
                                     T precision, T grad) {
  const Excess<T> both = excess(r.x, r.variance);
  const T g = linear ? f.constant - r.x : both.g, h = linear ? T(-1) : both.h;
  if (T(0.5) * (r.d * r.d + g) < f.free_bits) grad = T(0);
  const T q = f.to_posterior * grad, p = f.to_prior * grad, d = r.d * precision;
  return {q * d, T(0.5) * q * h, -p * d, T(-0.5) * p * (h + r.d * r.d)};
}

}  // namespace vae_fused::math
