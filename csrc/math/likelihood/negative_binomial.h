// x ~ NB(m, theta), where m is the mean and theta the inverse dispersion. eps >= 0 is added where
// scvi adds it. With M = m + eps, T = theta + eps, s = theta + M, n = x + theta:
//
//   -ln p = theta ln(s / T) + x ln(s / M) - ln Gamma(n) + ln Gamma(theta) + ln x!
//
// **x = 0**, the case of most counts, leaves only theta ln(1 + m / T). A kernel computes this for
// every element. It collects the elements whose x is not 0 and adds `count_term` for them.
//
// **x > 0.** Stirling's formula is used for all three Gammas, and S is its error (math/special.h).
// With d = x - M, all terms of the order of x or theta combine into one deviance D, which is 0
// where M = x (Loader 2000):
//
//   -ln p = D + 1/2 ln(2 pi x n / theta) + S(x) + S(theta) - S(n)
//   D = x ln(1 + a) + theta ln(1 + b)     a = theta d / (n M)     b = -(theta d / n + eps) / T
//
// For x >= 1 all terms are positive. Where 1 + a and 1 + b are near 1, the heads of the two
// logarithms in D (`log_parts`) cancel, and their sum is theta d^2 / (n M) - eps (1 + b). So one
// form covers counts of any size, integer or not, without a loop, a table or double precision.
//
//   d/dm = theta/s (M - x) / M                      one term, for every element
//   d/dtheta = E(m / T) + eps/T m/s                 for every element; E of math/special.h
//            - sum_{k < x} (M - k) / ((theta + k) s)          for x > 0
//
// The first term of the sum is computed separately, because it is the only one for x = 1, and it is
// small where M is small. The sum of the other terms is psi(n) - psi(theta') - x' / s with
// theta' = theta + 1 and x' = x - 1. By Stirling's formula it is
//
//   = E(x' / theta') - x' (x - M) / (n s) + x' / (2 theta' n) + S'(n) - S'(theta')
//
// where all terms are of the order theta^-2, as is their sum, so a large theta needs no special
// case.
//
// Limits: theta is at most 2^64 (2^400 in double). At this maximum, the distribution equals a
// Poisson to the last digit. Theta is at least 2^-80 (2^-400), except in ln theta. For a mean that
// is nearly 0, the value is computed from the logarithm of the mean: see `log_positive`.
//
// Error in float, with Theta = max(theta, 1): at most 8 * 2^-24 times
//
//   theta ln(1 + m / T) + |x ln(M Theta / s)| + |ln prod_{k < x} (theta + k) / Theta| + ln x!
//
// for the value (1e-6 relative for x up to 16), 8 * 2^-24 relative for d/dm, and 13 * 2^-24 times
// E + sum_{k < x} |M - k| / ((theta + k) s) for d/dtheta. A front end of the mean adds 8 * 2^-24
// |x - m| max(1, |raw|) to the error of the value. The front end's relative error of 4 * 2^-24 also
// propagates to the results by the chain rule.
#pragma once

#include "math/likelihood/front_end.h"

namespace vae_fused::math {

template <typename F>
struct NbParameters {
  Positive<F> mean, theta;
  F shifted_mean, shifted_theta, sum;  // M, T, s
};

template <typename Options, typename F>
VAE_FUSED_HD NbParameters<F> nb_parameters(const Options& o, F raw_mean, const Positive<F>& theta) {
  Positive<F> mean = positive(o.mean, raw_mean);
  if (is_exponential(o.mean)) {
    mean.value = mean.derivative = smaller(F(kLargestMean<number_t<F>>), mean.value);
  }
  const F eps = F(o.eps), shifted = mean.value + eps;
  return {mean, theta, shifted, theta.value + eps, theta.value + shifted};
}

template <typename F>
VAE_FUSED_HD F nb_of_zero(const NbParameters<F>& p) {
  return p.theta.value * log1p(p.mean.value * reciprocal(p.shifted_theta));
}

// The value of a count x > 0. Where `ordinary` is false, direct(1 / n, parts of ln(1 + b)) computes
// D.
template <typename T, typename F, typename Mask, typename Direct>
VAE_FUSED_HD F nb_saddle_point(const NbParameters<F>& p, T eps, F x, Mask ordinary,
                               const Direct& direct) {
  const F theta = p.theta.value, n = x + theta, inverse_n = reciprocal(n);
  const F share = theta * inverse_n, delta = (x - p.mean.value) - F(eps);
  const F ratio = delta * reciprocal(p.shifted_mean);
  const F a = share * ratio;
  F b = -delta * inverse_n, one_b = p.sum * inverse_n, least = a * delta;
  if (eps != T(0)) {
    const F inverse_theta = reciprocal(p.shifted_theta);
    b = -(share * delta + F(eps)) * inverse_theta;
    one_b = one_b * (theta * inverse_theta);
    least = least - F(eps) * one_b;
  }
  one_b = select(b < F(-0.5), one_b, F(1) + b);
  const LogParts<F> log_a = log_parts(F(1) + a, a), log_b = log_parts(one_b, b);
  const F heads = select(log_a.far | log_b.far, x * log_a.head + theta * log_b.head, least);
  F deviance = heads + (x * log_a.tail + theta * log_b.tail);
  if (!all(ordinary)) deviance = select(ordinary, deviance, direct(inverse_n, log_b));
  const F root = F(0.5) * log(F(6.283185307179586) * x * (n * reciprocal(theta)));
  const F errors = stirling_error(x) + (stirling_error(theta) - stirling_error(n));
  return (deviance + root) + errors;
}

// Below kLeastTheta, ln Gamma(theta) is -ln theta. At theta = 0 every count x > 0 has probability
// 0.
template <typename Options, typename F>
VAE_FUSED_HD F with_least_theta(const Options& o, F raw_theta, F value) {
  using T = number_t<F>;
  const F given = positive(o.dispersion, raw_theta).value;
  const auto represented = given > F(kLeastTheta<T>);
  if (all(represented)) return value;
  const F missing = F(kLogLeastTheta<T>) - log_positive(o.dispersion, raw_theta, given);
  return select(given < F(kLeastTheta<T>), value + missing, value);
}

template <typename Options, typename F>
VAE_FUSED_HD F nb_of_count(const Options& o, F raw_mean, F raw_theta, F count) {
  const NbParameters<F> p = nb_parameters(o, raw_mean, dispersion(o, raw_theta));
  using T = number_t<F>;
  const F x = select(count < F(0), F(kNaN<T>), count);
  const auto ordinary = p.shifted_mean > F(kTinyMean<T>);
  F value = nb_saddle_point(p, o.eps, x, ordinary, [&](F inverse_n, const LogParts<F>& log_b) {
    const F log_mean = log_positive(o.mean, raw_mean, p.shifted_mean);
    const F direct = x * (log(x * p.sum * inverse_n) - log_mean);
    return direct + p.theta.value * (log_b.head + log_b.tail);
  });
  if (!o.constants) value = value - log_factorial(x);
  return at_infinity(raw_mean, with_least_theta(o, raw_theta, value));
}

// The derivative with respect to the raw output of the mean.
template <typename Options, typename F>
VAE_FUSED_HD F nb_mean_adjoint(const Options& o, const NbParameters<F>& p, F x) {
  const F dlog = log_derivative(o.mean, o.eps, p.mean, p.shifted_mean);
  return p.theta.value * reciprocal(p.sum) *
         select(x == F(0), p.mean.derivative, ((p.mean.value - x) + F(o.eps)) * dlog);
}

// The derivative with respect to theta for x = 0. The next function returns what a count x > 0 adds
// to it.
template <typename Options, typename F>
VAE_FUSED_HD F nb_theta_adjoint_of_zero(const Options& o, const NbParameters<F>& p) {
  const F ratio = p.mean.value * reciprocal(p.sum);
  const F excess = log1p_excess(p.mean.value, p.shifted_theta, ratio);
  if (o.eps == number_t<F>(0)) return excess;
  return excess + F(o.eps) * reciprocal(p.shifted_theta) * ratio;
}

template <typename F>
VAE_FUSED_HD F nb_theta_adjoint_of_count(const NbParameters<F>& p, F x) {
  const F m = p.shifted_mean, theta1 = p.theta.value + F(1), x1 = x - F(1);
  const F inverse_n = reciprocal(x + p.theta.value), inverse_s = reciprocal(p.sum);
  const F first = m * inverse_s * reciprocal(p.theta.value), share = x1 * inverse_n;
  const F others = log1p_excess(x1, theta1, share) +
                   share * (F(0.5) * reciprocal(theta1) - (x - m) * inverse_s) +
                   (stirling_error_slope(x + p.theta.value) - stirling_error_slope(theta1));
  return -first - others;
}

struct NegativeBinomial {
  static constexpr int kInputs = 3;  // mean, theta, x
  static constexpr bool kIsCount = true;

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options& o, const F (&in)[kInputs]) {
    const NbParameters<F> p = nb_parameters(o, in[0], dispersion(o, in[1]));
    return select(in[2] == F(0), at_infinity(in[0], nb_of_zero(p)), F(0));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD F count_term(const Options& o, const F (&in)[kInputs]) {
    return nb_of_count(o, in[0], in[1], in[2]);
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    const NbParameters<F> p = nb_parameters(o, in[0], dispersion(o, in[1]));
    out[0] = grad * nb_mean_adjoint(o, p, in[2]);
    out[1] = grad * (p.theta.derivative * nb_theta_adjoint_of_zero(o, p));
    out[2] = F(0);
  }

  // Adds the contribution of a count x > 0 to the gradient of theta.
  template <typename Options, typename F>
  static VAE_FUSED_HD void count_term_adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                              F (&out)[kInputs]) {
    const NbParameters<F> p = nb_parameters(o, in[0], dispersion(o, in[1]));
    out[1] = out[1] + grad * (p.theta.derivative * nb_theta_adjoint_of_count(p, in[2]));
  }
};

}  // namespace vae_fused::math
