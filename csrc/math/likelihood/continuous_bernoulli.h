// The density of x in [0, 1] is proportional to e^(l x), where l is the logit (Loaiza-Ganem and
// Cunningham 2019, "The continuous Bernoulli"). In the paper's notation, with the sigmoid s and the
// normalizing constant C, -ln p = ln(1 + e^l) - x l - C, C = ln(2 artanh(1 - 2 s) / (1 - 2 s))
// = ln(l / tanh(l / 2)).
//
// In that form ln(1 + e^l) and C cancel, and C is 0 / 0 at l = 0. The integral of e^(l x) over
// [0, 1] is (e^l - 1) / l, so
//
//   -ln p = ln((e^l - 1) / l) - x l
//         = l (1/2 - x) + l^2 P(l^2)                      |l| < 2,  ln(sinh(l/2) / (l/2)) = l^2 P
//         = |l| w - ln(|l| / (1 - e^-|l|))                elsewhere, w = l > 0 ? 1 - x : x
//   d/dl  = (1/2 - x) + l Q(l^2)                          l Q = coth(l/2) / 2 - 1 / l
//         = sign(l) (w - 1 / |l| + e^-|l| / (1 - e^-|l|))
//   d/dx  = -l
//
// with P(w) = sum_n c_n w^n, Q(w) = sum_n 2 (n + 1) c_n w^n and
// c_n = (-1)^n zeta(2 n + 2) / ((n + 1) (2 pi)^(2 n + 2)): 1/24, -1/2880, ...
//
// An infinite logit puts all probability at one end: the density is infinite there and 0 elsewhere.
//
// Error in float: at most 4 * 2^-24 times the sum of the magnitudes of the terms of the form in
// use, for the value and for the gradient. The double version uses the same forms, and the boundary
// between them is |l| = 1.
#pragma once

#include "math/likelihood/options.h"
#include "math/special.h"

namespace vae_fused::math {

template <typename F>
VAE_FUSED_HD F log_sinhc(F w) {  // P(w), w in [0, 4]
  F p = 1.70365089e-9f;
  p = p * w - 1.02058330e-7f;
  p = p * w + 5.50967707e-6f;
  p = p * w - 3.47221328e-4f;
  return p * w + 4.16666679e-2f;
}

template <typename F>
VAE_FUSED_HD F log_sinhc_slope(F w) {  // Q(w)
  F p = 1.63635150e-8f;
  p = p * w - 8.11753694e-7f;
  p = p * w + 3.30479561e-5f;
  p = p * w - 1.38887868e-3f;
  return p * w + 8.33333358e-2f;
}

constexpr int kSinhcTerms = 12;

VAE_FUSED_HD double sinhc_series(int n) {
  constexpr double kTerms[kSinhcTerms] = {
      1.0 / 24,
      -1.0 / 2880,
      5.5114638447971781305e-6,
      -1.0333994708994708995e-7,
      2.0876756987868098979e-9,
      -4.403491782239577654e-11,
      9.558954664774770595e-13,
      -2.1185501852016142918e-14,
      4.770034475709913647e-16,
      -1.0874343492790309365e-17,
      2.504092194709195234e-19,
      -5.8143602857552180586e-21,
  };
  return kTerms[n];
}

VAE_FUSED_HD double log_sinhc(double w) {
  double p = 0;
  for (int n = kSinhcTerms - 1; n >= 0; --n) p = p * w + sinhc_series(n);
  return p;
}

VAE_FUSED_HD double log_sinhc_slope(double w) {
  double p = 0;
  for (int n = kSinhcTerms - 1; n >= 0; --n) p = p * w + 2 * (n + 1) * sinhc_series(n);
  return p;
}

template <typename T>
constexpr T kNearSinhc = sizeof(T) == 8 ? T(1) : T(2);

struct ContinuousBernoulli {
  static constexpr int kInputs = 2;  // logit, x
  static constexpr bool kIsCount = false;

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options&, const F (&in)[kInputs]) {
    using T = number_t<F>;
    const F l = in[0], x = in[1], a = abs(l), w = l * l;
    const auto is_near = a < F(kNearSinhc<T>);
    const F near = l * (F(0.5) - x) + w * log_sinhc(w);
    if (all(is_near)) return near;
    const F weight = select(l > F(0), F(1) - x, x), linear = a * weight;
    const F far = linear - log(a * reciprocal(F(1) - exp_minus_abs(l)));
    const F end = select(weight == F(0), F(-kInfinity<T>), linear);
    return select(is_near, near, select(a == F(kInfinity<T>), end, far));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options&, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    using T = number_t<F>;
    const F l = in[0], x = in[1], a = abs(l), w = l * l;
    const auto is_near = a < F(kNearSinhc<T>);
    F slope = (F(0.5) - x) + l * log_sinhc_slope(w);
    if (!all(is_near)) {
      const F e = exp_minus_abs(l);
      const F rest = e * reciprocal(F(1) - e) - reciprocal(a);
      const F far = select(l > F(0), (F(1) - x) + rest, -x - rest);
      slope = select(is_near, slope, far);
    }
    out[0] = grad * slope;
    out[1] = -grad * l;
  }
};

}  // namespace vae_fused::math
