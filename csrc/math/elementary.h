// exp, log and sincos in single precision, as branch-free polynomials. `F` is a float, or a vector
// of floats (cpu/vector.h).
//
// Why not the platform's: (1) a loop over a tile must vectorise, and a call to libm stops that;
// (2) the same instructions on the CPU and the GPU keep their normals within an ulp of each other;
// (3) CUDA's sincosf carries a slow path with a stack frame for arguments that never occur here.
// The coefficients come from tools/fit_polynomials.py. The domains are those that can occur:
//
//   function   domain               error bound (tests/native sweep it)
//   exp_pair   below 89             2 ulp each; nan gives nan; e^h is 0 below 2^-126.5, inf above
//                                   2^127.5; e^(2h) underflows gradually
//   log        [2^-33, 1]           2 ulp
//   sincos     [0, 2 pi]            1.3e-7 absolute
//
// and those of the general family, of any argument, exact at the ends and for NaN:
//
//   exp        all                  2 ulp, as exp_pair
//   log_any    all                  2 ulp
//   log1p_unit [0, 1]               2 ulp
//   tanh       all                  3 ulp; its derivative 6
//   sqrt_any, reciprocal   all      2 ulp
//
// The double precision overloads are the platform's.
#pragma once

#include "math/platform.h"

namespace vae_fused::math {

// Adding and subtracting 1.5 * 2^23 rounds a float of magnitude below 2^22 to the nearest integer,
// which then stands in the low bits of the sum. Unlike a conversion it is defined for NaN.
constexpr float kRoundingMagic = 12582912.0f;

// e^h and e^(2h), from h = n ln 2 + f with f in [-ln2/2, ln2/2] and t = e^f - 1:
//
//   e^h = 2^n (1 + t)      e^(2h) = 2^n 2^n (1 + t (2 + t))
//
// Squaring e^h instead would double its relative error; this way each has but one rounding more
// than t.
template <typename T>
struct ExpPair {
  T e, square;
};

VAE_FUSED_HD ExpPair<float> exp_pair(float h) {
  // n in [-127, 128]: at the ends 2^n comes out as 0 and inf. NaN fails the comparison and stays.
  h = h < -88.2f ? -88.2f : h;
  const float shifted = h * 1.44269504f + kRoundingMagic;
  const float n = shifted - kRoundingMagic;
  // ln 2 in two parts; the first has 9 significant bits, so n times it is exact.
  const float f = (h - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.38145942e-3f;
  p = p * f + 8.36871658e-3f;
  p = p * f + 4.16683890e-2f;
  p = p * f + 1.66665211e-1f;
  p = p * f + 4.99999940e-1f;
  const float t = p * f * f + f;
  const float power = real((bits(shifted) << 23) + 0x3F800000u);  // 2^n: the magic is shifted out
  return {(1.0f + t) * power, (1.0f + t * (2.0f + t)) * power * power};
}

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

// Double is the reference path: 1/2 ulp each matters more than time.
VAE_FUSED_HD ExpPair<double> exp_pair(double h) { return {exp_libm(h), exp_libm(2.0 * h)}; }

VAE_FUSED_HD float exp(float x) { return exp_pair(x > 89.0f ? 89.0f : x).e; }
VAE_FUSED_HD double exp(double x) { return exp_libm(x); }

// Numbers below 2^-126 are taken 2^24 times as large.
VAE_FUSED_HD float log_any(float x) {
  const float inf = real(0x7F800000u), nan = real(0x7FC00000u);
  const bool small = x < 1.17549435e-38f;
  const float y = log(small ? x * 16777216.0f : x) - (small ? 16.6355324f : 0.0f);
  const float special = x == 0.0f ? -inf : x == inf ? inf : nan;
  return x > 0.0f && x < inf ? y : special;
}
VAE_FUSED_HD double log_any(double x) { return log_libm(x); }

VAE_FUSED_HD float reciprocal(float x) { return reciprocal_libm(x); }
VAE_FUSED_HD double reciprocal(double x) { return 1.0 / x; }

VAE_FUSED_HD float sqrt_any(float x) { return sqrt_any_libm(x); }
VAE_FUSED_HD double sqrt_any(double x) { return sqrt_libm(x); }

// ln(1 + e) = ln w + (e - (w - 1)) / w,  w = 1 + e rounded.
VAE_FUSED_HD float log1p_unit(float e) {
  const float w = 1.0f + e;
  return log(w) + (e - (w - 1.0f)) * reciprocal(w);
}
VAE_FUSED_HD double log1p_unit(double e) { return log1p_libm(e); }

// By e = e^(-2|t|), tanh |t| = (1 - e) / (1 + e), and near 0, where that cancels, by a polynomial;
// tanh' = 4 e / (1 + e)^2, which 1 - tanh^2 would lose.
template <typename T>
struct Tanh {
  T value, derivative;
};

VAE_FUSED_HD Tanh<float> tanh(float t) {
  const float magnitude = std::fabs(t), z = t * t;
  const float e = exp(-2.0f * magnitude), r = reciprocal(1.0f + e);
  float p = 1.64587665e-2f;
  p = p * z - 5.26841506e-2f;
  p = p * z + 1.33209422e-1f;
  p = p * z - 3.33329588e-1f;
  const float far = (1.0f - e) * r;
  return {magnitude < 0.55f ? t + t * z * p : t < 0.0f ? -far : far, 4.0f * e * (r * r)};
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
