// x ~ Bernoulli(s(l)), where l is the logit:  -ln p = ln(1 + e^l) - x l
//
//   = |l| (l > 0 ? 1 - x : x) + ln(1 + e^-|l|)
//   d/dl = s(l) - x = l > 0 ? (1 - x) - s(-|l|) : s(-|l|) - x        d/dx = -l
//
// For x in [0, 1] both terms are positive, and the gradient is the difference of two numbers that
// are exact or nearly so: s(-|l|) = e^-|l| / (1 + e^-|l|) <= 1/2. Where an infinite logit is
// multiplied by 0, x is exactly 0 or 1, so the product is set to its limit, 0.
//
// The sum of several values needs fewer logarithms:
//
//   sum of ln(1 + e^-|l|) = ln(product of (1 + e^-|l|))
//
// so one logarithm is enough for as many elements as the product can contain without overflow.
//
// Error in float: at most 4 * 2^-24 relative for the value and, where s(-|l|) is a normal number,
// 6 * 2^-24 (|w| + s(-|l|)) for the gradient, with w = l > 0 ? 1 - x : x. If w is 0, this bound for
// the gradient amounts to 6 * 2^-24 relative.
#pragma once

#include "math/likelihood/log_terms.h"
#include "math/likelihood/options.h"
#include "math/special.h"

namespace vae_fused::math {

struct Bernoulli {
  static constexpr int kInputs = 2;  // logit, x
  static constexpr bool kIsCount = false;

  template <typename F>
  static VAE_FUSED_HD LogTerms<F> log_terms(const F (&in)[kInputs]) {
    return {minus_abs(in[0]), select(in[0] > F(0), F(1) - in[1], in[1])};
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options&, const F (&in)[kInputs]) {
    const LogTerms<F> terms = log_terms(in);
    return log1p_unit(exp_of_negative(terms.exponent)) - linear_term(terms);
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options&, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    const F e = exp_minus_abs(in[0]), s = quotient(e, F(1) + e);
    out[0] = grad * select(in[0] > F(0), (F(1) - in[1]) - s, s - in[1]);
    out[1] = -grad * in[0];
  }
};

template <>
constexpr bool kHasLogTerms<Bernoulli> = true;

}  // namespace vae_fused::math
