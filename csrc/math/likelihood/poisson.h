// x ~ Poisson(m), where m is the rate:  -ln p = m - x ln m + ln x!
//
// For x = 0 this is m. Counts are mostly 0, so a kernel collects the others and adds `count_term`
// only for them. For x > 0, with t = m / x and S of math/special.h,
//
//   -ln p = x (t - 1 - ln t) + 1/2 ln 2 pi x + S(x)             (Loader 2000, the saddle point)
//
// For x >= 1 all terms are positive, so they do not cancel. In the first term, (t - 1) - ln t is
// minus the tail of `log_parts` where t is near 1, and t - 1 is computed as (m - x) / x. x need not
// be an integer, and no table or loop over the count is needed. Without constants, ln x! is omitted
// and only the direct form is used.
//
//   d/dm = 1 - x / m = (m - x) / m
//
// This formula applies to all elements, so `count_term_adjoint` has nothing to add.
//
// Error in float: at most 8 * 2^-24 times |m| + |x ln m| + ln x! for the value (1e-6 relative for x
// up to 16), and 8 * 2^-24 relative for the gradient. A front end adds 4 * 2^-24 |x - m| max(1,
// |raw|) to the error of the value.
#pragma once

#include "math/likelihood/front_end.h"

namespace vae_fused::math {

struct Poisson {
  static constexpr int kInputs = 2;  // rate, x
  static constexpr bool kIsCount = true;

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options& o, const F (&in)[kInputs]) {
    return select(in[1] == F(0), at_infinity(in[0], positive(o.mean, in[0]).value), F(0));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD F count_term(const Options& o, const F (&in)[kInputs]) {
    using T = number_t<F>;
    const F m = positive(o.mean, in[0]).value;
    const F x = select(in[1] < F(0), F(kNaN<T>), in[1]);
    if (!o.constants) return m - x * log_positive(o.mean, in[0], m);
    const F inverse = reciprocal(x), f = (m - x) * inverse;
    const LogParts<F> log = log_parts(m * inverse, f);
    F deviance = x * (select(log.far, f - log.head, F(0)) - log.tail);
    const auto ordinary = m > F(kTinyMean<T>);
    if (!all(ordinary)) {
      const F direct = x * ((math::log(x) - log_positive(o.mean, in[0], m)) + f);
      deviance = select(ordinary, deviance, direct);
    }
    const F root = F(0.5) * math::log(F(6.283185307179586) * x);
    return at_infinity(in[0], deviance + root + stirling_error(x));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    const Positive<F> m = positive(o.mean, in[0]);
    const F dlog = log_derivative(o.mean, number_t<F>(0), m, m.value);
    out[0] = grad * select(in[1] == F(0), m.derivative, (m.value - in[1]) * dlog);
    out[1] = F(0);
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void count_term_adjoint(const Options&, const F (&)[kInputs], F,
                                              F (&)[kInputs]) {}
};

}  // namespace vae_fused::math
