// Functions that the count likelihoods need in addition to math/elementary.h: logarithms near 1,
// and the corrections of Stirling's series, which replace log-gamma and digamma. `F` is a float, a
// double or a vector of floats (cpu/vector.h). In float the errors have these bounds, which sweeps
// in tests/native verify:
//
//   function               domain           error bound
//   log1p                  r >= 0           2 ulp plus half an ulp of 1 + r: 4 ulp; NaN stays NaN
//   log_parts              u > 0            2 ulp of each part
//   log1p_excess           a / b > -1       8 ulp
//   stirling_error         z > 0            4e-8 (1 + S)
//   stirling_error_slope   z >= 1           1e-7 / z^2
//
// Everything is evaluated in the precision of F. Float tensors use no double precision anywhere,
// because consumer GPUs run double precision at 1/64 of the speed of float. Double tensors use the
// platform's library, and series that are long enough to keep errors at a few 1e-16.
#pragma once

#include "math/elementary.h"

namespace vae_fused::math {

// ---------------------------------------------------------------------------------------------
// ln u, where both u and f = u - 1 are accurate relative to their own size
//
//   ln u = head + tail      head = f, tail = ln(1 + f) - f                 near 1
//                           head = n ln 2 + g, tail = ln(1 + g) - g        elsewhere, u = 2^n (1+g)
//
// Near 1, in [sqrt(1/2), sqrt(2)), rounding u would lose the digits of f. If the heads of several
// logarithms cancel in a sum, only their tails are needed. The tail is -f^2 / 2 + ..., computed by
// a polynomial, so nothing cancels in it. The comparisons are false for NaN, so for NaN the head is
// f, which is NaN as well.
// ---------------------------------------------------------------------------------------------

template <typename F>
struct LogParts {
  F head, tail;
  decltype(F() < F()) far;  // u is far from 1, so head is not f
};

template <typename F>
VAE_FUSED_HD LogParts<F> log_parts(F u, F f) {
  const decltype(u < u) far = (u < F(0.707106769f)) | (u > F(1.41421342f));
  const auto b = bits(u) - 0x3F3504F3u;
  const F n = shifted_to_float(b, 23);
  const F g = select(far, F(real((b & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f), f);
  return {select(far, g + n * 0.693147182f, f), g * g * log_polynomial<1>(g), far};
}

VAE_FUSED_HD LogParts<double> log_parts(double u, double f) {
  return {f > -0.5 && f < 1.0 ? log1p_libm(f) : log_libm(u), 0.0, true};
}

template <typename F>
VAE_FUSED_HD F log1p(F r) {
  const F u = 1.0f + r;
  const auto b = bits(u) - 0x3F3504F3u;
  const F g = real((b & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  return reduced_log<1>(F(shifted_to_float(b, 23)), select(u > F(1.41421342f), g, r));
}
VAE_FUSED_HD double log1p(double r) { return log1p_libm(r); }

// e^x and e^x - 1. With x = n ln 2 + f and q = 2^n as in `exponential`, e^x - 1 = q t + (q - 1).
// Where n = 0, e^x - 1 is t, so nothing cancels.
template <typename F>
struct ExpM1 {
  F exp, m1;
};

template <typename F>
VAE_FUSED_HD ExpM1<F> exp_m1(F x) {
  const Exponential<F> e = exponential(within_exponents(x));
  return {(1.0f + e.t) * e.q, e.q * e.t + (e.q - 1.0f)};
}
VAE_FUSED_HD ExpM1<double> exp_m1(double x) { return {exp_libm(x), expm1_libm(x)}; }

// ---------------------------------------------------------------------------------------------
// E(y) = ln(1 + y) - y / (1 + y),  y = a / b;  E' = y / (1 + y)^2
//
// E is about y^2 / 2 near 0, where its two terms cancel. With z = y / (2 + y) = a / (a + 2 b) the
// logarithm is 2 artanh z, and y / (1 + y) = 2 z / (1 + z):
//
//   E = 2 z^2 / (1 + z) + 2 z^3 (1/3 + z^2 / 5 + z^4 / 7 + ...),    2 z / (1 + z) = a / (a + b)
//
// For y > 0 all terms of this sum are positive. The polynomial is fitted for |z| < 0.45, that is
// -0.62 < y < 1.63. `ratio` is a / (a + b).
// ---------------------------------------------------------------------------------------------

template <typename F>
VAE_FUSED_HD F artanh_tail(F z2) {  // (artanh z - z) / z^3 for z2 = z^2
  F p = 1.52282104e-1f;
  p = p * z2 + 9.71189737e-2f;
  p = p * z2 + 1.44185334e-1f;
  p = p * z2 + 1.99949265e-1f;
  return p * z2 + 3.33333880e-1f;
}

VAE_FUSED_HD double artanh_tail(double z2) {
  double p = 1.0 / 23;
  for (int k = 21; k >= 3; k -= 2) p = p * z2 + 1.0 / k;
  return p;
}

template <typename F>
constexpr float kNearArtanh = sizeof(number_t<F>) == 8 ? 0.15f : 0.45f;

template <typename F>
VAE_FUSED_HD F log1p_excess(F a, F b, F ratio) {
  const F z = a * reciprocal(a + b + b), z2 = z * z;
  const F near = z * ratio + F(2) * z2 * z * artanh_tail(z2);
  const auto is_near = abs(z) < F(kNearArtanh<F>);
  if (all(is_near)) return near;
  const F y = a * reciprocal(b);
  const LogParts<F> log = log_parts(F(1) + y, y);
  return select(is_near, near, (log.head - ratio) + log.tail);
}

// ---------------------------------------------------------------------------------------------
// S(z) = ln Gamma(z + 1) - (z + 1/2) ln z + z - 1/2 ln 2 pi = 1/(12 z) - 1/(360 z^3) + ...
//
// is the error of Stirling's formula. S is positive and decreasing. It is 0.0811 at z = 1, and it
// behaves like -1/2 ln z + ... as z approaches 0. With t = 1 / (z^2 + c)
//
//   S(z) = z t P(t),  c = 0.18      -S'(z) = ln z - 1/(2 z) - psi(z) = t R(t),  c = 0.32
//
// for all z >= 1. The series of S in 1 / z does not converge, but because of the shift c this has
// no effect for z >= 1. A polynomial P of degree 4 has an absolute error of only 9e-9, and an R of
// degree 4 has a relative error of only 6e-7. Below 1, S follows from S(z + 1), because
// Gamma(z + 2) = (z + 1) Gamma(z + 1):
//
//   S(z) = S(z + 1) + (z + 1/2) ln(1 + 1/z) - 1
//   S'(z) = S'(z + 1) + ln(1 + 1/z) - (z + 1/2) / (z (z + 1))
// ---------------------------------------------------------------------------------------------

template <typename F>
VAE_FUSED_HD F stirling_error(F z) {
  const auto direct = z > F(0.99999994f);
  F above = z;
  if (!all(direct)) above = select(direct, z, z + F(1));
  const F t = reciprocal(above * above + 0.18f);
  F p = 1.41190685e-4f;
  p = p * t + 1.91276340e-4f;
  p = p * t + 2.46415450e-3f;
  p = p * t + 1.22251958e-2f;
  p = p * t + 8.33332464e-2f;
  F s = above * t * p;
  if (!all(direct)) {
    s = select(direct, s, s + ((z + F(0.5)) * log1p(reciprocal(z)) - F(1)));
  }
  return s;
}

template <typename F>
VAE_FUSED_HD F stirling_error_slope(F z) {
  const auto direct = z > F(0.99999994f);
  F above = z;
  if (!all(direct)) above = select(direct, z, z + F(1));
  const F t = reciprocal(above * above + 0.32f);
  F p = -1.25195342e-3f;
  p = p * t - 5.14534651e-4f;
  p = p * t - 7.07935402e-3f;
  p = p * t - 1.83377657e-2f;
  p = p * t - 8.33333060e-2f;
  F slope = t * p;
  if (!all(direct)) {
    const F y = reciprocal(z), step = log1p(y) - (z + F(0.5)) * y * reciprocal(above);
    slope = select(direct, slope, slope + step);
  }
  return slope;
}

// In double the same recurrence raises z to at least 10, where 8 terms of the series in 1 / z^2
// give 16 digits.
constexpr int kStirlingTerms = 8;

VAE_FUSED_HD double stirling_series(int k) {  // B_2k / (2k (2k - 1)) for k = 1, 2, ...
  constexpr double kTerms[kStirlingTerms] = {1.0 / 12,    -1.0 / 360,      1.0 / 1260,
                                             -1.0 / 1680, 1.0 / 1188,      -691.0 / 360360,
                                             1.0 / 156,   -3617.0 / 122400};
  return kTerms[k - 1];
}

// These functions are not inlined on a GPU, because one double-precision kernel calls each of them
// several times.
VAE_FUSED_NOINLINE_DEVICE double stirling_error(double z) {
  double s = 0;
  for (; z < 10; z += 1) s += (z + 0.5) * log1p_libm(1 / z) - 1;
  const double v = 1 / z;
  double p = 0;
  for (int k = kStirlingTerms; k > 0; --k) p = p * v * v + stirling_series(k);
  return s + p * v;
}

VAE_FUSED_NOINLINE_DEVICE double stirling_error_slope(double z) {
  double s = 0;
  for (; z < 10; z += 1) s += log1p_libm(1 / z) - (z + 0.5) / (z * (z + 1));
  const double v = 1 / z;
  double p = 0;
  for (int k = kStirlingTerms; k > 0; --k) p = p * v * v - (2 * k - 1) * stirling_series(k);
  return s + p * v * v;
}

// ln x! for x > 0, from Stirling's formula and its error.
template <typename F>
VAE_FUSED_HD F log_factorial(F x) {
  return ((x + F(0.5)) * log(x) - x) + (F(0.91893853320467274) + stirling_error(x));
}

}  // namespace vae_fused::math
