// exp, log and sincos in single precision, as branch-free polynomials.
//
// Why not the platform's: (1) a loop over a tile must vectorise, and a call to libm stops that;
// (2) the same instructions on the CPU and the GPU keep their normals within an ulp of each other;
// (3) CUDA's sincosf carries a slow path with a stack frame for arguments that never occur here.
// The coefficients come from tools/fit_polynomials.py. The domains are those that can occur:
//
//   function   domain               error bound (tests/native sweep it)
//   exp_pair   all floats           2 ulp each, with gradual underflow; nan gives nan
//   log        [2^-33, 1]           2 ulp
//   sincos     [0, 2 pi]            1.2e-7 absolute
//
// The double precision overloads are the platform's.
#pragma once

#include "math/platform.h"

namespace vae_fused::math {

// Adding and subtracting 1.5 * 2^23 rounds a float of magnitude below 2^22 to the nearest integer,
// which then stands in the low bits of the sum. Unlike a conversion it is defined for NaN.
constexpr float kRoundingMagic = 12582912.0f;
constexpr uint32_t kRoundingMagicBits = 0x4B400000u;

// e^x and e^(2x), from x = n ln 2 + f with f in [-ln2/2, ln2/2] and t = e^f - 1:
//
//   e^x = 2^n (1 + t)      e^(2x) = 2^n 2^n (1 + t (2 + t))
//
// Squaring e^x instead would double its relative error; this way each has but one rounding more
// than t.
struct ExpPair {
  float e, square;
};

VAE_FUSED_HD ExpPair exp_pair(float x) {
  // Outside [-104, 89] both are 0 or inf in any rounding. NaN fails both comparisons and stays.
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const float shifted = x * 1.44269504f + kRoundingMagic;
  const float n = shifted - kRoundingMagic;
  // ln 2 in two parts; the first has 9 significant bits, so n times it is exact (|n| <= 150).
  const float f = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.38145942e-3f;
  p = p * f + 8.36871658e-3f;
  p = p * f + 4.16683890e-2f;
  p = p * f + 1.66665211e-1f;
  p = p * f + 4.99999940e-1f;
  const float t = p * f * f + f;
  // 2^n in two factors: n reaches 129 and -150, where one factor is no longer a normal float.
  const int32_t k = static_cast<int32_t>(bits(shifted) - kRoundingMagicBits);
  const int32_t half = k >> 1;
  const float a = real(static_cast<uint32_t>(half + 127) << 23);
  const float b = real(static_cast<uint32_t>(k - half + 127) << 23);
  return {(1.0f + t) * a * b, (1.0f + t * (2.0f + t)) * a * b * a * b};
}

// ln u = e ln 2 + ln(1 + f), with u = 2^e (1 + f) and 1 + f in [sqrt(1/2), sqrt(2)).
VAE_FUSED_HD float log(float u) {
  const uint32_t b = bits(u) - 0x3F3504F3u;  // sqrt(1/2): its exponent field becomes 0 and below
  const int32_t e = static_cast<int32_t>(b) >> 23;
  const float f = real((b & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  float p = 6.75517693e-2f;
  p = p * f - 1.16808273e-1f;
  p = p * f + 1.18871324e-1f;
  p = p * f - 1.24046348e-1f;
  p = p * f + 1.42195597e-1f;
  p = p * f - 1.66680515e-1f;
  p = p * f + 2.00021207e-1f;
  p = p * f - 2.50000089e-1f;
  p = p * f + 3.33333135e-1f;
  const float square = f * f;
  const float n = static_cast<float>(e);
  // Small terms first; e times the first part of ln 2 is exact.
  return ((p * f * square + n * -2.12194440e-4f) - 0.5f * square + f) + n * 0.693359375f;
}

VAE_FUSED_HD double log(double u) { return log_libm(u); }

// sin and cos of t in [0, 2 pi], reduced by quarter turns: f = t - j pi/2 in [-pi/4, pi/4].
VAE_FUSED_HD void sincos(float t, float& s, float& c) {
  const float shifted = t * 0.636619772f + kRoundingMagic;
  const float j = shifted - kRoundingMagic;
  // pi/2 in three parts, the first two short enough that j times them is exact (j <= 4).
  const float f = ((t - j * 1.5703125f) - j * 4.837512969970703e-4f) - j * 7.549789954891882e-8f;
  const float z = f * f;
  const float sine = ((-1.95172674e-4f * z + 8.33217800e-3f) * z - 1.66666552e-1f) * (z * f) + f;
  const float cosine =
      ((2.44384173e-5f * z - 1.38873677e-3f) * z + 4.16666456e-2f) * (z * z) - 0.5f * z + 1.0f;
  // Quarter turns 1 and 3 exchange the two; sin changes sign in turns 2 and 3, cos in 1 and 2.
  const uint32_t turn = bits(shifted);
  const bool odd = (turn & 1u) != 0;
  s = real(bits(odd ? cosine : sine) ^ ((turn & 2u) << 30));
  c = real(bits(odd ? sine : cosine) ^ (((turn + 1u) & 2u) << 30));
}

VAE_FUSED_HD void sincos(double t, double& s, double& c) { sincos_libm(t, s, c); }

VAE_FUSED_HD float sqrt(float x) { return sqrt_libm(x); }
VAE_FUSED_HD double sqrt(double x) { return sqrt_libm(x); }

}  // namespace vae_fused::math
