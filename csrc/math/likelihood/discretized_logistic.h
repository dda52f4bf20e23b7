// x is a point of a grid on [-1, 1] with step size 2 h, where h = 1 / (2^bits - 1). Its probability
// is that of the interval from x - h to x + h under a logistic distribution with mean m and scale
// e^s. The intervals of the first and the last point extend to infinity (Salimans et al. 2017,
// "PixelCNN++"). With s = max(log_scale, log_scale_min), i = e^-s, p = i (x - m + h),
// q = i (x - m - h), d = p - q = 2 h i, and the sigmoid S:
//
//   -ln p(x) = ln(1 + e^-p)                                           x < -1 + h
//            = ln(1 + e^q)                                            x > 1 - h
//            = -ln(S(p) - S(q)) = ln(1 + e^-p) + ln(1 + e^q) - ln(1 - e^-d)    otherwise
//
// because S(p) - S(q) = S(p) S(-q) (1 - e^-d). All three terms are positive, so nothing cancels at
// any scale. Where i is too small to represent d accurately, -ln(1 - e^-d) is s - ln 2 h.
//
//   d/dm = i (S(-p) - S(q))        d/ds = p S(-p) - q S(q) + d / (e^d - 1)
//
// The first point of the grid has only the terms of p, and the last point only those of q. The
// derivative with respect to log_scale is 0 below log_scale_min, but not at log_scale_min. x has no
// gradient, because it is a grid point.
//
// Error in float: at most 4 * 2^-24 times the following, where u = i (|x - m| + h) accounts for the
// rounding of p and q. An exponential below 2^-126 is treated as 0.
//
//   (1 + u) (ln(1 + e^-p) + ln(1 + e^q)) - ln(1 - e^-d) + d / (e^d - 1)              for the value
//   (1 + u) i (S(-p) + S(q))                                                         for d/dm
//   (1 + u) (|p| S(-p) + |q| S(q)) + u (S(-p) + S(q)) + (1 + d) d / (e^d - 1)         for d/ds
#pragma once

#include "math/likelihood/options.h"
#include "math/special.h"

namespace vae_fused::math {

struct DiscretizedLogistic {
  static constexpr int kInputs = 3;  // mean, log_scale, x
  static constexpr bool kIsCount = false;

  // Intermediate values of the loss and its gradients. exp_p is e^-|p|, and exp_q is e^-|q|.
  // is_first and is_last are true if x counts as the first or the last value of the grid.
  template <typename F>
  struct Edges {
    F scale, inverse, p, q, exp_p, exp_q, width;  // scale is s, inverse i, width d
    decltype(F() < F()) is_first, is_last, is_floored;
  };

  template <typename Options, typename F>
  static VAE_FUSED_HD Edges<F> edges(const Options& o, const F (&in)[kInputs]) {
    using T = number_t<F>;
    Edges<F> e;
    const F h = F(o.half_step), distance = in[2] - in[0];
    e.is_floored = in[1] < F(o.log_scale_min);
    e.scale = larger(F(o.log_scale_min), in[1]);
    e.inverse = exp(-e.scale);
    e.p = e.inverse * (distance + h);
    e.q = e.inverse * (distance - h);
    e.exp_p = exp_minus_abs(e.p);
    e.exp_q = exp_minus_abs(e.q);
    e.width = (h + h) * e.inverse;
    e.is_first = in[2] < F(o.half_step - T(1));
    e.is_last = in[2] > F(T(1) - o.half_step);
    return e;
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options& o, const F (&in)[kInputs]) {
    using T = number_t<F>;
    const Edges<F> e = edges(o, in);
    const F below = larger(F(0), -e.p) + log1p_unit(e.exp_p);
    const F above = larger(F(0), e.q) + log1p_unit(e.exp_q);
    const ExpM1<F> w = exp_m1(-e.width);
    const LogParts<F> log = log_parts(-w.m1, -w.exp);
    F within = -log.head - log.tail;
    const auto ordinary = e.width > F(kLeastWidth<T>);
    if (!all(ordinary)) {
      const F wide = e.scale - F(math::log(T(2) * o.half_step));
      within = select(ordinary, within, wide);
    }
    return select(e.is_first, below, select(e.is_last, above, (below + above) + within));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    using T = number_t<F>;
    const Edges<F> e = edges(o, in);
    const F s_p = reciprocal(F(1) + e.exp_p), s_q = reciprocal(F(1) + e.exp_q);
    // S(-p) and S(q), and 0 for an edge that the grid point does not have. Where S is 0, p S is
    // taken as 0 even if p is infinite.
    F below = select(e.p > F(0), e.exp_p * s_p, s_p);
    F above = select(e.q > F(0), s_q, e.exp_q * s_q);
    below = select(e.is_last, F(0), below);
    above = select(e.is_first, F(0), above);
    const ExpM1<F> w = exp_m1(-e.width);
    F within = e.width * w.exp * reciprocal(-w.m1);
    within = select(e.width > F(kLeastWidth<T>), within, F(1));
    within = select(e.is_first | e.is_last, F(0), within);
    const F p_term = select(below == F(0), F(0), e.p * below);
    const F q_term = select(above == F(0), F(0), e.q * above);
    out[0] = grad * (e.inverse * (below - above));
    out[1] = select(e.is_floored, F(0), grad * ((p_term - q_term) + within));
    out[2] = F(0);
  }

 private:
  // For widths below this, the limits for d -> 0 are used, because a width that is not a normal
  // number has fewer digits.
  template <typename T>
  static constexpr T kLeastWidth = sizeof(T) == 8 ? T(0x1p-900) : T(0x1p-100);
};

}  // namespace vae_fused::math
