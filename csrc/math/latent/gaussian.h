// The diagonal Gaussian posterior q = N(mu, sigma^2), its prior p = N(m, tau^2), the sample and the
// KL, for one latent element at a time. Each formula is written once, with its derivation above it
// and its adjoint below it.
//
// A formula that depends on the options of a call has two forms, selected by its first argument.
// LatentOptions contains every option of a call. DefaultOptions represents the default call
// (logvar, clamped or not, standard normal prior). Its other options are constants, which the
// compiler folds away. The formulas for samples and KLs also accept the Weights of LatentOptions.
#pragma once

#include "math/latent/options.h"
#include "math/scale.h"

namespace vae_fused::math {

// ---------------------------------------------------------------------------------------------
// g(x) = e^x - 1 - x and h(x) = e^x - 1 = x + g(x)
//
// The KL below is half of mu^2 + g(x), and h is the derivative of g. Both suffer from cancellation
// near 0: in fp32, e^x - 1 - x is wrong by a factor of 3 at x = 1e-4, and negative at -1e-4. For
// |x| <= 1 both are computed instead from
//
//   g(x) = x^2 P(x),   P(x) = (e^x - 1 - x) / x^2 = 1/2 + x/6 + x^2/24 + ...  > 0
//
// with a minimax polynomial whose relative error is 1.0e-8 (float) or 1.7e-17 (double). The square
// keeps g non-negative. For |x| > 1 no digits are lost: |h| > 0.63, g > 0.36. The coarse polynomial
// is for |x| <= 3/4. Its degree is lower by two, and its relative error is 3.1e-7. At x = +inf the
// direct form would be inf - inf. A clipped x gives the limit, +inf. Eager PyTorch returns NaN.
// ---------------------------------------------------------------------------------------------

template <bool coarse, typename F>
VAE_FUSED_HD F excess_polynomial(F x) {
  if constexpr (coarse) {
    F p = 1.99183021e-4f;
    p = p * x + 1.40986685e-3f;
    p = p * x + 8.3339382e-3f;
    p = p * x + 4.16622683e-2f;
    p = p * x + 1.66666523e-1f;
    return p * x + 0.500000119f;
  }
  F p = 2.77228310e-6f;
  p = p * x + 2.53548224e-5f;
  p = p * x + 1.98440233e-4f;
  p = p * x + 1.38854526e-3f;
  p = p * x + 8.33331048e-3f;
  p = p * x + 4.16667350e-2f;
  p = p * x + 1.66666672e-1f;
  return p * x + 0.5f;
}

template <bool>
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

template <typename F>
struct Excess {
  F g, h;
};

// Above x = 178, subtracting x no longer changes g, because in float even e^(x/2) is inf, and x is
// negligible next to e^x. Clipping x before it is subtracted keeps g from becoming inf - inf.
constexpr float kClipForExp = 178;
template <typename F>
VAE_FUSED_HD F clip_for_exp(F x) {
  return smaller(F(kClipForExp), x);
}

template <bool coarse = false, typename F>
VAE_FUSED_HD Excess<F> excess(F x, F exp_x) {
  const auto far = abs(x) > F(coarse ? 0.75f : 1.0f);
  const F series = x * x * excess_polynomial<coarse>(x), direct = exp_x - F(1);
  return {select(far, direct - x, series), select(far, direct, x + series)};
}

// sigma, g and h are computed together, which is cheaper. With e^x = q (1 + t), q = 2^n, x = n ln
// 2 + f, t = f + u and u >= 0 (see `exponential`),
//
//   sigma = sqrt(q + q t)      h = q t + (q - 1)      g = q u + (q f + (q - 1 - x))
//
// For n = 0, that is for |x| < ln 2 / 2, f is x, g is u and h is t. So nothing cancels, and g is
// not negative. The relative errors are 9.0e-8 for sigma, 1.3e-7 for h, and 2.8e-7 for g. Around
// |x| = 0.35, where n is 1 or -1 and g is small, the error of g is 7.4e-7. With
// (q - 1) f + (q - 1 - n ln 2) as the last term of g, this error would be 3.0e-7, but the average
// error for large x would double, to over twice that of eager PyTorch.
//
// This works while q and e^x are normal numbers, that is for |x| < 87. Beyond that, sigma is
// e^(x/2), and g and h use the direct form.
template <typename F>
struct Exponentials {
  F sigma;
  Excess<F> gh;
  VAE_FUSED_HD Excess<F> excess(F) const { return gh; }
};

// In double, g and h use polynomials of degree 15, which are evaluated only where their values are
// used. If evaluated earlier, g and h would occupy registers that the rest of the kernel needs.
template <>
struct Exponentials<double> {
  double sigma, variance;
  VAE_FUSED_HD Excess<double> excess(double x) const {
    return math::excess(clip_for_exp(x), variance);
  }
};

template <typename F>
VAE_FUSED_HD Exponentials<F> near_exponentials(F x) {
  const Exponential<F> p = exponential(x);
  const F q1 = p.q - F(1);
  return {sqrt_normal(p.q * p.t + p.q), {p.q * p.u + (p.q * p.f + (q1 - x)), p.q * p.t + q1}};
}

// Returns `near` where |x| < kNear, and otherwise the exponentials in direct form. From sm_100 on,
// an argument passed by reference stays in memory, so `near` is passed by value. The condition is
// computed from y, because the caller's result of is_near would have to stay in registers.
template <typename F>
VAE_FUSED_NOINLINE_DEVICE Exponentials<F> near_or_far_exponentials(F x, Exponentials<F> near) {
  const F y = F(0.5) * clip_for_exp(x);
  const Exponential<F> p = exponential(within_exponents(y));
  const F direct = (F(1) + p.t * (F(2) + p.t)) * p.q * p.q - F(1);  // in two factors of q
  const auto is_near = abs(y) < F(0.5f * kNear);
  return {select(is_near, near.sigma, (F(1) + p.t) * p.q),
          {select(is_near, near.gh.g, direct - (y + y)), select(is_near, near.gh.h, direct)}};
}

// For the N values that a GPU thread holds, with a single branch for all of them.
template <int N, typename F>
VAE_FUSED_HD void exponentials(const F (&x)[N], Exponentials<F> (&out)[N]) {
  bool near = true;
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) {
    out[j] = near_exponentials(x[j]);
    near &= all(is_near(x[j]));
  }
  if (near) return;
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) out[j] = near_or_far_exponentials(x[j], out[j]);
}

template <int N>
VAE_FUSED_HD void exponentials(const double (&x)[N], Exponentials<double> (&out)[N]) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) out[j] = {exp(0.5 * x[j]), exp(x[j])};
}

template <typename F>
VAE_FUSED_HD Exponentials<F> exponentials(F x) {
  const F xs[] = {x};
  Exponentials<F> result[1];
  exponentials(xs, result);
  return result[0];
}

// ---------------------------------------------------------------------------------------------
// Posterior: mu, sigma and x = ln sigma^2 from the network's outputs
//
// DefaultOptions: the output is x itself, clamped,  sigma = e^(x/2),  d sigma / dx = sigma / 2.
// `undo_doubling` applies the factor 1/2 of this derivative and of the KL's to the sum of both.
// ---------------------------------------------------------------------------------------------

template <typename T>
struct Posterior {
  T mu, dmu;  // derivatives with respect to the network's outputs
  Scale<T> scale;
  Exponentials<T>
      exponentials;  // only for DefaultOptions; the KL of LatentOptions uses sigma / tau instead
  bool is_clamped = false;  // only for DefaultOptions without the clip: the gradient of x is 0
};

// The clip is part of the upper bound of the clamp, so it costs nothing.
template <typename T>
VAE_FUSED_HD DefaultOptions<T> default_options(const LatentOptions<double>& o) {
  const T low = T(o.posterior.low), high = T(o.posterior.high);
  return {low, high, sizeof(T) == 8 ? high : smaller(high, T(kClipForExp))};
}

// Removes the clip, which would affect `is_clamped`. Gradients do not use g and need no clip.
template <typename T>
VAE_FUSED_HD DefaultOptions<T> without_clip(DefaultOptions<T> o) {
  o.clip_high = o.high;
  return o;
}

template <bool clamps = true, typename T, typename F>
VAE_FUSED_HD F clamp_raw(const DefaultOptions<T>& o, F raw) {
  if constexpr (clamps) return clamp(raw, o.low, o.clip_high);
  return raw;
}

// For 16-bit results on a GPU, the exponentials may be approximate as well. For |x| <= 20, the
// relative error of an element's KL is then at most 4e-6.
template <bool coarse, int N, typename T>
VAE_FUSED_HD void exponentials_for(const T (&x)[N], Exponentials<T> (&out)[N]) {
  if constexpr (coarse && kHasApproximations) {
    VAE_FUSED_UNROLL
    for (int j = 0; j < N; ++j) {
      const T e = ex2_approx(T(0.7213475204444817) * x[j]);
      out[j] = {e, excess<true>(x[j], e * e)};
    }
  } else {
    exponentials(x, out);
  }
}

template <bool coarse = false, int N, typename T>
VAE_FUSED_HD void posterior(const DefaultOptions<T>& o, const T (&mu)[N], const T (&raw)[N],
                            Posterior<T> (&out)[N]) {
  T x[N];
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) x[j] = clamp_raw(o, raw[j]);
  Exponentials<T> exps[N];
  exponentials_for<coarse>(x, exps);
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) {
    const Scale<T> scale = {exps[j].sigma, x[j], exps[j].sigma, T(1)};
    out[j] = {mu[j], T(1), scale, exps[j], is_outside(raw[j], x[j], x[j])};
  }
}

template <bool coarse = false, int N, typename T>
VAE_FUSED_HD void posterior(const LatentOptions<T>& o, const T (&mu)[N], const T (&raw)[N],
                            Posterior<T> (&out)[N]) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) out[j] = {mu[j], T(1), scale_of(o.posterior, raw[j]), {}, false};
  if (o.mu_soft_clamp == T(0)) return;
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) {
    const Clamped<T> clamped = soft_clamp(mu[j], o.mu_soft_clamp, o.per_mu_soft_clamp);
    out[j].mu = clamped.x;
    out[j].dmu = clamped.dx;
  }
}

// ---------------------------------------------------------------------------------------------
// Sample: z = mu + T sigma eps, eps ~ N(0, 1)          (Kingma and Welling 2014, section 2.4)
//
//   dz/dmu = 1      dz/dsigma = T eps      dz/deps = T sigma
// ---------------------------------------------------------------------------------------------

template <typename Options, typename F>
VAE_FUSED_HD F sample(const Options& o, F mu, F sigma, F eps) {
  return mu + o.temperature * sigma * eps;
}

// The gradient with respect to eps.
template <typename Options, typename F>
VAE_FUSED_HD F noise_adjoint(const Options& o, F grad_z, F sigma) {
  return o.temperature * grad_z * sigma;
}

// The gradient with respect to the raw scale.
template <typename T, typename F>
VAE_FUSED_HD F sample_adjoint(const DefaultOptions<T>&, F grad_z_eps, F dsigma) {
  return grad_z_eps * dsigma;
}

template <typename Options, typename F>
VAE_FUSED_HD F sample_adjoint(const Options& o, F grad_z_eps, F dsigma) {
  return chain(o.temperature * grad_z_eps, dsigma);
}

// ---------------------------------------------------------------------------------------------
// Prior, and the posterior in units of the prior:
//
//   d = (mu - m) / tau      x = ln sigma^2 - ln tau^2      r^2 = (sigma / tau)^2 = e^x
//
// r^2 is computed as the square of sigma / tau, because e^x would magnify the rounding error of x.
// Where sigma or tau is outside the normal range, only x is accurate, and r^2 is computed as e^x.
// 1 / tau is kept finite there, so that d is 0 where mu = m.
// ---------------------------------------------------------------------------------------------

template <typename T>
struct Prior {
  T mean, precision, x, dx;  // m, 1 / tau, ln tau^2 and its derivative
};

template <typename T>
constexpr T kSmallest = std::numeric_limits<T>::min();  // a power of two, as is its reciprocal

template <typename F>
VAE_FUSED_HD F precision_of(F tau) {
  return reciprocal(larger(F(kSmallest<number_t<F>>), tau));
}

// Without a tensor for its scale, the prior uses the scale in the options.
template <int N, typename T>
VAE_FUSED_HD void prior(const LatentOptions<T>& o, bool has_raw, const T (&mean)[N],
                        const T (&raw)[N], Prior<T> (&out)[N]) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) out[j] = {mean[j], o.prior_precision, o.prior_x, T(0)};
  if (!has_raw) return;
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) {
    const Scale<T> tau = scale_of(o.prior, raw[j]);
    out[j] = {mean[j], precision_of(tau.sigma), tau.x, tau.dx};
  }
}

template <typename F>
struct Relative {
  F d, x;
  Excess<F> excess;  // g(x) and h(x)
};

template <typename T>
VAE_FUSED_HD Relative<T> relative(const DefaultOptions<T>&, const Posterior<T>& q,
                                  const Prior<T>&) {
  return {q.mu, q.scale.x, q.exponentials.excess(q.scale.x)};
}

template <typename T, typename F>
VAE_FUSED_HD Relative<F> relative(const LatentOptions<T>&, const Posterior<F>& q,
                                  const Prior<F>& p) {
  const F sigma = q.scale.sigma, r = sigma * p.precision, x = q.scale.x - p.x;
  const auto direct = (smaller(sigma, p.precision) > F(kSmallest<T>)) &
                      (larger(sigma, p.precision) < F(T(1) / kSmallest<T>));
  F variance = r * r;
  if (!all(direct)) variance = select(direct, variance, exp(x));
  return {(q.mu - p.mean) * p.precision, x, excess(clip_for_exp(x), variance)};
}

// ---------------------------------------------------------------------------------------------
// KL( q || p ) = 1/2 ( (mu - m)^2 / tau^2 + sigma^2 / tau^2 - 1 - ln(sigma^2 / tau^2) )
//              = 1/2 (d^2 + g(x))                                    (ibid., appendix B)
//
// Both terms are non-negative, so the KL cannot become negative.
//
//   dkl/dmu = d / tau       dkl/dln sigma^2 =  1/2 h(x)
//   dkl/dm  = -d / tau      dkl/dln tau^2   = -1/2 (h(x) + d^2)
//
// Linear form, for a point mu at which p is evaluated: 1/2 (d^2 + c - x). There the average of d^2
// contains r^2 = e^x, and h(x) = -1. For sigma = 1 and c = ln 2 pi the form is -ln p(mu).
//
// The KL of an element is at least free_bits. Below that bound its gradient is 0. `is_linear_form`
// is an argument, so that callers can pass a constant and compile a loop for each form.
//
// The per-element functions return twice the KL and, with DefaultOptions, twice the gradient of x.
// The factor 1/2 is exact and is applied once, to a sum.
// ---------------------------------------------------------------------------------------------

template <typename T, typename F>
VAE_FUSED_HD F kl_times_two(const DefaultOptions<T>&, bool, const Relative<F>& r) {
  return r.d * r.d + r.excess.g;
}

template <typename Options, typename F>
VAE_FUSED_HD F kl_times_two(const Options& o, bool is_linear_form, const Relative<F>& r) {
  const F g = is_linear_form ? o.constant - r.x : r.excess.g;
  return larger(F(2 * o.free_bits), r.d * r.d + g);
}

// The derivatives with respect to mu, ln sigma^2, m and ln tau^2.
template <typename F>
struct KlAdjoint {
  F mu, x, mean, prior_x;
};

template <typename T, typename F>
VAE_FUSED_HD KlAdjoint<F> kl_adjoint(const DefaultOptions<T>&, bool, const Relative<F>& r, F,
                                     F grad) {
  return {grad * r.d, grad * r.excess.h, F(0), F(0)};
}

template <typename Options, typename F>
VAE_FUSED_HD KlAdjoint<F> kl_adjoint(const Options& o, bool is_linear_form, const Relative<F>& r,
                                     F precision, F grad) {
  const F g = is_linear_form ? o.constant - r.x : r.excess.g,
          h = is_linear_form ? F(-1) : r.excess.h;
  grad = select(r.d * r.d + g < F(2 * o.free_bits), F(0), grad);
  const F q = o.to_posterior * grad, p = o.to_prior * grad, d = r.d * precision;
  return {q * d, F(0.5) * q * h, -p * d, F(-0.5) * p * (h + r.d * r.d)};
}

// Applies the deferred factor 1/2 to the sum of all gradients with respect to the raw scale.
template <typename T, typename F>
VAE_FUSED_HD F undo_doubling(const DefaultOptions<T>&, F twice) {
  return F(0.5) * twice;
}

template <typename T, typename F>
VAE_FUSED_HD F undo_doubling(const LatentOptions<T>&, F grad) {
  return grad;
}

}  // namespace vae_fused::math
