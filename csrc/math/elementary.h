// exp, log and sincos in single precision, as branch-free polynomials. `F` is a float, or a vector
// of floats (cpu/vector.h); math/lanes.h says what it must have.
//
// Why not the platform's: (1) a tile is computed by vectors, and libm takes one number at a time;
// (2) the same instructions on the CPU and the GPU keep their normals within an ulp of each other;
// (3) CUDA's sincosf carries a slow path with a stack frame for arguments that never occur here.
// The coefficients come from tools/fit_polynomials.py. The domains are those that can occur:
//
//   function   domain               error bound (tests/native sweep it)
//   log        [2^-33, 1]           2 ulp
//   sincos     [0, 2 pi]            1.3e-7 absolute
//
// and of any argument, exact at the ends and for NaN:
//
//   exp        all                  2 ulp; 0 below 2^-126.5, inf above 2^127.5
//   log_any    all                  2 ulp
//   log1p_unit [0, 1]               2 ulp
//   tanh       all                  3 ulp; its derivative 6
//   sqrt_any, reciprocal   all      2 ulp
//
// The double precision overloads are the platform's.
#pragma once

#include "math/lanes.h"

namespace vae_fused::math {

// Adding and subtracting 1.5 * 2^23 rounds a float of magnitude below 2^22 to the nearest integer,
// which then stands in the low bits of the sum. Unlike a conversion it is defined for NaN.
constexpr float kRoundingMagic = 12582912.0f;

// e^h = 2^n (1 + t),  h = n ln 2 + f,  f in [-ln2/2, ln2/2],  t = e^f - 1 = f + u,  u >= 0
//
// u is accurate to 1.4e-7 of itself: see math/gaussian.h for what that is good for.
template <typename F>
struct Exponential {
  F n, power, f, u, t;  // power = 2^n
};

// Of h <= 89; NaN stays.
template <typename F>
VAE_FUSED_HD Exponential<F> exponential(F h) {
  h = larger(F(-88.2f), h);  // n in [-127, 128]: at the ends 2^n comes out as 0 and inf
  const F shifted = h * 1.44269504f + kRoundingMagic;
  const F n = shifted - kRoundingMagic;
  // ln 2 in two parts; the first has 9 significant bits, so n times it is exact.
  const F f = (h - n * 0.693359375f) - n * -2.12194440e-4f;
  F p = 1.39012886e-3f;
  p = p * f + 8.36314633e-3f;
  p = p * f + 4.16668542e-2f;
  p = p * f + 1.66665778e-1f;
  p = p * f + 0.5f;
  const F u = rounded_product(f * f, p);
  return {n, real((bits(shifted) << 23) + 0x3F800000u), f, u, f + u};  // the magic is shifted out
}

template <typename F>
VAE_FUSED_HD F exp(F x) {
  const Exponential<F> e = exponential(smaller(F(89.0f), x));
  return (1.0f + e.t) * e.power;
}
VAE_FUSED_HD double exp(double x) { return exp_libm(x); }

// ln u = n ln 2 + ln(1 + f), with u = 2^n (1 + f) and 1 + f in [sqrt(1/2), sqrt(2)).
template <typename F>
VAE_FUSED_HD F log(F u) {
  const auto b = bits(u) - 0x3F3504F3u;  // sqrt(1/2): its exponent field becomes 0 and below
  const F n = shifted_to_float(b, 23);
  const F f = real((b & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  F p = 8.71121734e-2f;
  p = p * f - 1.42714977e-1f;
  p = p * f + 1.49129361e-1f;
  p = p * f - 1.65770248e-1f;
  p = p * f + 1.99631721e-1f;
  p = p * f - 2.50013560e-1f;
  p = p * f + 3.33339095e-1f;
  p = p * f - 0.5f;
  return (f * f * p + f) + n * 0.693147182f;
}

VAE_FUSED_HD double log(double u) { return log_libm(u); }

// Numbers below 2^-126 are taken 2^24 times as large.
template <typename F>
VAE_FUSED_HD F log_any(F x) {
  const F inf = real(0x7F800000u), nan = real(0x7FC00000u);
  const auto small = x < F(1.17549435e-38f);
  const auto usual = (x > F(1.17549421e-38f)) & (x < inf);
  F normal = x;
  if (!all(usual)) normal = select(small, x * 16777216.0f, x);
  F y = log(normal);
  if (!all(usual)) {
    const F special = select(x == F(0.0f), -inf, select(x == inf, inf, nan));
    y = select((x > F(0.0f)) & (x < inf), y - select(small, F(16.6355324f), F(0.0f)), special);
  }
  return y;
}
VAE_FUSED_HD double log_any(double x) { return log_libm(x); }

VAE_FUSED_HD float reciprocal(float x) { return reciprocal_libm(x); }
VAE_FUSED_HD double reciprocal(double x) { return 1.0 / x; }

VAE_FUSED_HD float sqrt_any(float x) { return sqrt_any_libm(x); }
VAE_FUSED_HD double sqrt_any(double x) { return sqrt_libm(x); }

// ln(1 + e) = ln w + (e - (w - 1)) / w,  w = 1 + e rounded.
template <typename F>
VAE_FUSED_HD F log1p_unit(F e) {
  const F w = 1.0f + e;
  return log(w) + (e - (w - 1.0f)) * reciprocal(w);
}
VAE_FUSED_HD double log1p_unit(double e) { return log1p_libm(e); }

// By e = e^(-2|t|), tanh |t| = (1 - e) / (1 + e), and near 0, where that cancels, by a polynomial;
// tanh' = 4 e / (1 + e)^2, which 1 - tanh^2 would lose.
template <typename F>
struct Tanh {
  F value, derivative;
};

template <typename F>
VAE_FUSED_HD Tanh<F> tanh(F t) {
  const F magnitude = abs(t), z = t * t;
  const F e = exp(-2.0f * magnitude), r = reciprocal(1.0f + e);
  F p = 1.64587665e-2f;
  p = p * z - 5.26841506e-2f;
  p = p * z + 1.33209422e-1f;
  p = p * z - 3.33329588e-1f;
  const F far = (1.0f - e) * r;
  const F signed_far = select(t < F(0.0f), -far, far);
  return {select(magnitude < F(0.55f), t + t * z * p, signed_far), 4.0f * e * (r * r)};
}

VAE_FUSED_HD Tanh<double> tanh(double t) {
  const double e = exp_libm(-2.0 * std::fabs(t)), r = 1.0 / (1.0 + e);
  return {tanh_libm(t), 4.0 * e * (r * r)};
}

// sin and cos of t in [0, 2 pi], reduced by half turns: f = t - j pi in [-pi/2, pi/2], and both
// change sign if j is odd. A half turn takes longer polynomials than a quarter, but no exchange of
// the two: 20 instructions instead of 27.
template <typename F>
VAE_FUSED_HD void sincos(F t, F& s, F& c) {
  const F shifted = t * 0.318309886f + kRoundingMagic;
  const F j = shifted - kRoundingMagic;
  // j is 0, 1 or 2, so its products are exact, and so is the first difference (Sterbenz).
  const F f = (t - j * 3.14159274f) + j * 8.74227766e-8f;
  const F z = f * f;
  F sine = 2.60003981e-6f;
  sine = sine * z - 1.98066089e-4f;
  sine = sine * z + 8.33301712e-3f;
  sine = sine * z - 1.66666567e-1f;
  F cosine = -2.61936862e-7f;
  cosine = cosine * z + 2.47692988e-5f;
  cosine = cosine * z - 1.38885691e-3f;
  cosine = cosine * z + 4.16666567e-2f;
  const auto sign = bits(shifted) << 31;
  s = real(bits(f * z * sine + f) ^ sign);
  c = real(bits(cosine * (z * z) + (1.0f - 0.5f * z)) ^ sign);
}

// sin and cos of 2 pi u, u in [0, 1]. In float the angle is the rounded product of the rounded 2
// pi, as PyTorch has it: reducing the exact angle instead would move normals by up to 2.7e-6, more
// than the noise contract allows. In double nobody can tell.
template <typename F>
VAE_FUSED_HD void sincos_turns(F u, F& s, F& c) {
  sincos(6.283185307179586f * u, s, c);
}
VAE_FUSED_HD void sincos_turns(double u, double& s, double& c) { sincos_turns_libm(u, s, c); }

VAE_FUSED_HD float sqrt(float x) { return sqrt_libm(x); }
VAE_FUSED_HD double sqrt(double x) { return sqrt_libm(x); }

}  // namespace vae_fused::math
