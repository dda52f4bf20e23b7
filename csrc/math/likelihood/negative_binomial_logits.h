// x ~ NB with the parameters of torch.distributions.NegativeBinomial: x is the number of successes
// before the r-th failure, r = total_count, and l is the logit of the probability s(l) of a
// success:
//
//   -ln p = r ln(1 + e^l) + x ln(1 + e^-l) - ln Gamma(x + r) + ln Gamma(r) + ln x!
//
// This is the negative binomial with theta = r and the mean m = r e^l. For a count of 0 only the
// first term remains. A count x > 0 uses the saddle point of math/likelihood/negative_binomial.h,
// in which no terms of the order of x or r cancel. Where m is below 2^-100 or above 2^100, the
// deviance is
//
//   D = x (ln(x / n) + ln(1 + e^-l)) + r (ln(1 + e^l) - ln(1 + x / r))          n = x + r
//
//   d/dl = r s(l) - x s(-l)
//   d/dr = ln(1 + e^l) - sum_{k < x} 1 / (r + k)
//
// The first term of the sum is computed separately, as in math/likelihood/negative_binomial.h. With
// r' = r + 1, x' = x - 1 and S of math/special.h, the sum of the other terms is
//
//   psi(n) - psi(r') = ln(1 + x' / r') + x' / (2 n r') + S'(n) - S'(r')
//
// Limits: r is at most 2^64 (2^400 in double) in the corrections of Stirling's series, but not in
// m. For an infinite r, m is infinite and every count has probability 0. An e^l below 2^-126 is
// treated as 0.
//
// Error in float, with R = max(r, 1): at most 6 * 2^-24 times
//
//   r ln(1 + e^l) + |x ln(s(l) R)| + |ln prod_{k < x} (r + k) / R| + ln x! + |x - m|
//
// for the value, 6 * 2^-24 times r s(l) + x s(-l) for d/dl, and 6 * 2^-24 times
// ln(1 + e^l) + sum_{k < x} 1 / (r + k) for d/dr.
#pragma once

#include "math/likelihood/negative_binomial.h"

namespace vae_fused::math {

template <typename F>
struct LogitTerms {
  F plus, minus;       // ln(1 + e^l) and ln(1 + e^-l)
  F success, failure;  // s(l) and s(-l)
};

template <typename F>
VAE_FUSED_HD LogitTerms<F> logit_terms(F l) {
  const F e = exp_minus_abs(l), log = log1p_unit(e), s = reciprocal(F(1) + e), small = e * s;
  const auto positive = l > F(0);
  return {larger(F(0), l) + log, larger(F(0), -l) + log, select(positive, s, small),
          select(positive, small, s)};
}

struct NegativeBinomialLogits {
  static constexpr int kInputs = 3;  // logit, total_count, x
  static constexpr bool kIsCount = true;

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options& o, const F (&in)[kInputs]) {
    const F r = positive(o.dispersion, in[1]).value;
    return select(in[2] == F(0), at_infinity(in[1], r * logit_terms(in[0]).plus), F(0));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD F count_term(const Options& o, const F (&in)[kInputs]) {
    using T = number_t<F>;
    const Positive<F> theta = dispersion(o, in[1]);
    const F x = select(in[2] < F(0), F(kNaN<T>), in[2]);
    const F r = positive(o.dispersion, in[1]).value;
    Positive<F> mean;
    mean.value = mean.derivative =
        smaller(F(kLargestMean<T>), larger(F(kLeastTheta<T>), r) * math::exp(in[0]));
    const NbParameters<F> p = {mean, theta, mean.value, theta.value, theta.value + mean.value};
    const auto ordinary = (mean.value > F(kTinyMean<T>)) & (mean.value < F(T(1) / kTinyMean<T>));
    const F value = nb_saddle_point(p, T(0), x, ordinary, [&](F inverse_n, const LogParts<F>&) {
      const LogitTerms<F> t = logit_terms(in[0]);
      const F count_term = x * (math::log(x * inverse_n) + t.minus);
      return count_term + p.theta.value * (t.plus - log1p(x * reciprocal(p.theta.value)));
    });
    const F whole = o.constants ? value : value - log_factorial(x);
    return at_infinity(in[1], with_least_theta(o, in[1], whole));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    const Positive<F> r = positive(o.dispersion, in[1]);
    const LogitTerms<F> t = logit_terms(in[0]);
    out[0] = grad * (r.value * t.success - in[2] * t.failure);
    out[1] = grad * (r.derivative * t.plus);
    out[2] = F(0);
  }

  // Adds the contribution of a count x > 0 to the gradient of total_count.
  template <typename Options, typename F>
  static VAE_FUSED_HD void count_term_adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                              F (&out)[kInputs]) {
    const Positive<F> r = dispersion(o, in[1]);
    const F r1 = r.value + F(1), x1 = in[2] - F(1), n = in[2] + r.value;
    const F per_r1 = reciprocal(r1), y = x1 * per_r1;
    const LogParts<F> log = log_parts(F(1) + y, y);
    const F slopes = stirling_error_slope(n) - stirling_error_slope(r1);
    const F others = (log.head + log.tail) + (F(0.5) * y * reciprocal(n) + slopes);
    out[1] = out[1] - grad * (r.derivative * (reciprocal(r.value) + others));
  }
};

}  // namespace vae_fused::math
