// x is 0 with probability p, and otherwise x ~ NB(m, theta). p is s(l) for a logit l, or p is
// itself an output; q = 1 - p. With L = theta ln(1 + m / T), the NB's negative log-likelihood of 0,
// and E = e^-L:
//
//   x = 0:  -ln u,  u = p + q E = 1 - q (1 - E)          x > 0:  -ln q + NB
//
// u is a sum of positive terms, and its distance from 1 is a product with 1 - E = -expm1(-L), so
// one logarithm (`log_parts`) is accurate at both ends. An element with x = 0 belongs to the NB
// with probability w = q E / u, so
//
//   x = 0:  d/dm and d/dtheta are w times the NB's       d/dp = -(1 - E) / u
//   x > 0:  they are the NB's                            d/dp = 1 / q              dp/dl = p q
//
// Where E is tiny, that is where L > 64, the weight w is computed from r = ln p - ln q + L, which
// is l + L for a logit. Where u is tiny as well, the value is also computed from r, and q is 1:
//
//   w = s(-r)      p q / u = q s(r)      -ln u = min(L, -ln p) - ln(1 + e^-|r|)
//
// Error in float: at most 12 * 2^-24 relative for the value at x = 0. For a count x > 0, it is the
// error of the NB plus 6 * 2^-24 ln(1 / q). The relative error of d/dl and d/dp is 15 * 2^-24
// (1 + w L), because E magnifies the error of L. The errors of the gradients of m and theta are at
// most 15 * 2^-24 w (1 + L) times the sums of magnitudes to which the bounds of these gradients in
// math/likelihood/negative_binomial.h are relative.
#pragma once

#include "math/likelihood/negative_binomial.h"

namespace vae_fused::math {

template <typename F>
struct Inflation {
  F p, q;
};

template <typename F>
VAE_FUSED_HD Inflation<F> inflation(ZeroInflation kind, F raw) {
  if (kind == ZeroInflation::kProbs) return {raw, F(1) - raw};
  const F e = exp_minus_abs(raw), s = reciprocal(F(1) + e), small = e * s;
  const auto positive = raw > F(0);
  return {select(positive, s, small), select(positive, small, s)};
}

// -ln q
template <typename F>
VAE_FUSED_HD F inflation_of_count(ZeroInflation kind, F raw) {
  if (kind == ZeroInflation::kLogits) return larger(F(0), raw) + log1p_unit(exp_minus_abs(raw));
  const F q = F(1) - raw;
  const LogParts<F> log = log_parts(q, -raw);
  return select(q > F(0), -log.head - log.tail, -log_any(q));
}

template <typename F>
struct ZeroMixture {
  F value, weight, dp;  // -ln u, w, and d/dp (probs) or d/dl (logits)
};

template <typename F>
VAE_FUSED_HD ZeroMixture<F> zero_mixture(ZeroInflation kind, F raw, F log_nb) {
  const bool logits = kind == ZeroInflation::kLogits;
  const Inflation<F> i = inflation(kind, raw);
  const ExpM1<F> e = exp_m1(-log_nb);
  const F u = i.p + i.q * e.exp, rest = -i.q * e.m1, inverse = reciprocal(u);
  const LogParts<F> log = log_parts(u, -rest);
  const F dp = logits ? i.p * rest : -e.m1;
  ZeroMixture<F> z = {-log.head - log.tail, i.q * e.exp * inverse, -dp * inverse};
  const auto ordinary = log_nb < F(64);
  if (!all(ordinary)) {
    const F log_p = logits ? raw : log_any(raw);
    const F r = (logits ? raw : log_p - log_any(i.q)) + log_nb;
    const F t = exp_minus_abs(r), s = reciprocal(F(1) + t), other = t * s;
    const auto nb = r < F(0), tiny = u < F(0x1p-80f);
    const F value = smaller(log_nb, -log_p) - log1p_unit(t);
    z.value = select(ordinary, z.value, select(tiny, value, z.value));
    z.weight = select(ordinary, z.weight, select(nb, s, other));
    const F far_dp = logits ? -i.q * select(nb, other, s) : select(tiny, -exp(value), z.dp);
    z.dp = select(ordinary, z.dp, far_dp);
  }
  return z;
}

struct ZeroInflatedNegativeBinomial {
  static constexpr int kInputs = 4;  // mean, theta, zero inflation, x
  static constexpr bool kIsCount = true;

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options& o, const F (&in)[kInputs]) {
    const NbParameters<F> p = nb_parameters(o, in[0], dispersion(o, in[1]));
    const F zero = zero_mixture(o.zero_inflation, in[2], nb_of_zero(p)).value;
    return select(in[3] == F(0), zero, F(0));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD F count_term(const Options& o, const F (&in)[kInputs]) {
    return nb_of_count(o, in[0], in[1], in[3]) + inflation_of_count(o.zero_inflation, in[2]);
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    const NbParameters<F> p = nb_parameters(o, in[0], dispersion(o, in[1]));
    const ZeroMixture<F> z = zero_mixture(o.zero_inflation, in[2], nb_of_zero(p));
    const Inflation<F> i = inflation(o.zero_inflation, in[2]);
    const auto is_zero = in[3] == F(0);
    const F weight = grad * select(is_zero, z.weight, F(1));
    const bool logits = o.zero_inflation == ZeroInflation::kLogits;
    out[0] = weight * nb_mean_adjoint(o, p, in[3]);
    out[1] = weight * (p.theta.derivative * nb_theta_adjoint_of_zero(o, p));
    out[2] = grad * select(is_zero, z.dp, logits ? i.p : reciprocal(i.q));
    out[3] = F(0);
  }

  // Adds the contribution of a count x > 0 to the gradient of theta.
  template <typename Options, typename F>
  static VAE_FUSED_HD void count_term_adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                              F (&out)[kInputs]) {
    const NbParameters<F> p = nb_parameters(o, in[0], dispersion(o, in[1]));
    out[1] = out[1] + grad * (p.theta.derivative * nb_theta_adjoint_of_count(p, in[3]));
  }
};

}  // namespace vae_fused::math
