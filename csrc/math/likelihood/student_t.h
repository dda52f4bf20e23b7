// x ~ Student-t with n degrees of freedom, d = (x - mean) / sigma:
//
//   -ln p = (n + 1)/2 ln(1 + d^2 / n) + ln sigma + K(n)
//   K(n)  = 1/2 ln(n pi) + ln Gamma(n / 2) - ln Gamma((n + 1) / 2)
//
// The log-gammas are of the order n ln n, but their difference is much smaller, so it is computed
// from Stirling's series. For n < 4 the series is evaluated at n + 4, and Gamma(z + 1) = z Gamma(z)
// leads back to n:
//
//   K(n) = 1/2 ln(2 pi) + k(n)       k(n) = 1/(4 n) - 1/(24 n^3) + 1/(20 n^5) - ... = n t P(t)
//                                   -k'(n) = 1/(4 n^2) - 1/(8 n^4) + ...            = t R(t)
//   k(n) = k(n + 4) + 1/2 ln(1 + (2 m^2 + 1) / (n m^2 (n + 4)))      m = n + 2
//   k'(n) = k'(n + 4) - 1 / (n (n + 1) m) - 1 / (m (n + 3) (n + 4))
//
// with t = 1 / (n^2 + c). In both recurrences all terms have the same sign. As n grows, k vanishes
// and the rest becomes d^2 / 2, so the limit is the Gaussian, to the last digit. If n is fixed,
// K(n) is part of `constant`.
//
//   d/dmean = -(n + 1) d / (n + d^2) / sigma         d/dx = -d/dmean
//   d/draw  = n (1 - d^2) / (n + d^2) dln sigma / draw
//   d/dn    = 1/2 E(d^2 / n) - d^2 / (2 n (n + d^2)) + k'(n)            E of math/special.h
//
// All terms of d/dn are of the order n^-2, as is their sum. Where |d| > 1, n + d^2 is divided by
// d^2, so that no square overflows. Where d^2 / n > 2^100, ln(1 + d^2 / n) is 2 ln |d| - ln n.
//
// n is at most 2^64 (2^400 in double) and at least 2^-80 (2^-400).
//
// Error in float, where sigma is an exponential: at most 9 * 2^-24 (12 * 2^-24 for d/dn) times
//
//   (n + 1)/2 ln(1 + d^2 / n) + |ln sigma| + 1/2 ln(2 pi) + k(n)                      for the value
//   (n + 1) |d| / (n + d^2) / sigma                                                    for d/dmean
//   n (1 + d^2) / (n + d^2) |dln sigma / draw|                                          for d/draw
//   1/2 E(d^2 / n) + d^2 / (2 n (n + d^2)) + |k'(n)|                                      for d/dn
//
// For other bases of sigma, which have their own error (math/scale.h), the factor of each bound,
// including that for d/dn, is 15. A front end of n adds its relative error of 4 * 2^-24 by the
// chain rule.
#pragma once

#include "math/likelihood/front_end.h"
#include "math/likelihood/location_scale.h"

namespace vae_fused::math {

template <typename F>
VAE_FUSED_HD F student_excess(F n) {  // k(n)
  const auto direct = n > F(3.9999998f);
  F above = n;
  if (!all(direct)) above = select(direct, n, n + F(4));
  const F t = reciprocal(above * above + 0.7f);
  F p = 1.94220785e-2f;
  p = p * t + 1.12870470e-1f;
  p = p * t + 1.33347347e-1f;
  p = p * t + 2.49999970e-1f;
  const F k = above * t * p;
  if (all(direct)) return k;
  const F m = n + F(2), square = m * m;
  const F step = (square + square + F(1)) * reciprocal(n * square * (n + F(4)));
  return select(direct, k, k + F(0.5) * log1p(step));
}

template <typename F>
VAE_FUSED_HD F student_excess_slope(F n) {  // k'(n)
  const auto direct = n > F(3.9999998f);
  F above = n;
  if (!all(direct)) above = select(direct, n, n + F(4));
  const F t = reciprocal(above * above + 1.3f);
  F p = 1.68162906f;
  p = p * t - 8.03170502e-2f;
  p = p * t + 3.45964819e-1f;
  p = p * t + 2.00009629e-1f;
  p = p * t + 2.49999985e-1f;
  const F slope = -(t * p);
  if (all(direct)) return slope;
  const F m = n + F(2), low = n * (n + F(1)), high = (n + F(3)) * (n + F(4));
  return select(direct, slope, slope - (low + high) * reciprocal(low * high * m));
}

// In double the recurrence raises n to at least 26, in steps of 2. For such an n, 8 terms of the
// series give 16 digits.
constexpr int kStudentTerms = 8;

VAE_FUSED_HD double student_series(int k) {  // (4^k - 1) B_2k / (2k (2k - 1)) for k = 1, 2, ...
  constexpr double kTerms[kStudentTerms] = {
      1.0 / 4,       -1.0 / 24,           1.0 / 20,        -255.0 / 1680,
      5115.0 / 5940, -2829645.0 / 360360, 114681.0 / 1092, -237040095.0 / 122400};
  return kTerms[k - 1];
}

VAE_FUSED_NOINLINE_DEVICE double student_excess(double n) {
  double sum = 0;
  for (; n < 26; n += 2) sum += 0.5 * log1p_libm(1 / (n * (n + 2)));
  const double v = 1 / n;
  double p = 0;
  for (int k = kStudentTerms; k > 0; --k) p = p * v * v + student_series(k);
  return sum + p * v;
}

VAE_FUSED_NOINLINE_DEVICE double student_excess_slope(double n) {
  double sum = 0;
  for (; n < 26; n += 2) sum -= 1 / (n * (n + 1) * (n + 2));
  const double v = 1 / n;
  double p = 0;
  for (int k = kStudentTerms; k > 0; --k) p = p * v * v - (2 * k - 1) * student_series(k);
  return sum + p * v * v;
}

// ln(1 + d^2 / n)
template <typename F>
VAE_FUSED_HD F student_log(F d, F n) {
  const F ratio = d * d * reciprocal(n);
  const auto ordinary = ratio < F(0x1p+100f);
  const F log = log1p(ratio);
  if (all(ordinary)) return log;
  return select(ordinary, log, F(2) * log_any(abs(d)) - log_any(n));
}

struct StudentT {
  static constexpr int kInputs = 4;  // mean, raw (read if o.has_raw), df (if o.has_df), x
  static constexpr bool kIsCount = false;

  template <typename Options, typename F>
  static VAE_FUSED_HD Positive<F> degrees(const Options& o, F raw) {
    if (o.has_df) return dispersion(o, raw);
    return {F(o.df), F(0)};
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options& o, const F (&in)[kInputs]) {
    const Deviation<F> q = deviation(o, in[0], in[1], in[3]);
    const F n = degrees(o, in[2]).value;
    F rest = q.log_sigma + F(o.constant);
    if (o.has_df) rest = rest + student_excess(n);
    return F(0.5) * (n + F(1)) * student_log(q.d, n) + rest;
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    const Deviation<F> q = deviation(o, in[0], in[1], in[3]);
    const Positive<F> df = degrees(o, in[2]);
    const F n = df.value, d = q.d, per_d = reciprocal(d);
    // n + d^2, d^2 and d, all divided by d^2 where |d| > 1
    const auto is_far = abs(d) > F(1);
    const F one = select(is_far, per_d * per_d, F(1)), square = select(is_far, F(1), d * d);
    const F inverse = reciprocal(n * one + square);
    out[3] = grad * ((n + F(1)) * select(is_far, per_d, d) * inverse) * q.precision;
    out[0] = -out[3];
    out[1] = chain(grad * (n * (one - square) * inverse), q.dlog_sigma);
    out[2] = F(0);
    if (!o.has_df) return;
    const F share = square * inverse;  // d^2 / (n + d^2)
    F excess = log1p_excess(d * d, n, share);
    const auto ordinary = d * d * reciprocal(n) < F(0x1p+100f);
    if (!all(ordinary)) excess = select(ordinary, excess, student_log(d, n) - share);
    const F slope = F(0.5) * (excess - share * reciprocal(n)) + student_excess_slope(n);
    out[2] = grad * (df.derivative * slope);
  }
};

}  // namespace vae_fused::math
