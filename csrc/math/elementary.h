// exp, log, sine and cosine in single precision, as branch-free polynomials. `F` is a float or a
// vector of floats (cpu/vector.h); math/lanes.h lists the functions that F needs.
//
// They replace the platform's functions for three reasons: (1) the CPU processes a tile in vectors,
// and libm takes one scalar at a time; (2) because the CPU and the GPU execute the same operations,
// their normals are within an ulp of each other; (3) CUDA's sincosf has a slow path with a stack
// frame for arguments that never occur here. tests/native/polynomials.py computes the coefficients.
// The domains contain every argument that can occur:
//
//   function   domain               error bound (verified by sweeps in tests/native)
//   log        [2^-33, 1]           2 ulp
//   polar      t in [0, 2 pi]       1.6e-7 r; 1.3e-7 r with fused multiply-adds
//
// The following are exact at the ends of their domain, and return NaN for NaN:
//
//   exp        all                  2 ulp; 0 below 2^-126.5, inf above 2^127.5
//   log_any    all                  2 ulp
//   log1p_unit [0, 1]               2 ulp
//   tanh       all                  3 ulp; derivative 6 ulp
//   sqrt_any, reciprocal   all      2 ulp
//
// The double-precision overloads call the platform's functions.
#pragma once

#include "math/lanes.h"

namespace vae_fused::math {

VAE_FUSED_HD float sqrt(float x) { return sqrt_libm(x); }
VAE_FUSED_HD double sqrt(double x) { return sqrt_libm(x); }

// The square root of a positive normal number, within 1.5 ulp.
VAE_FUSED_HD float sqrt_normal(float x) {
  return kHasApproximations ? sqrt_approx(x) : sqrt_libm(x);
}

// Adding and subtracting 1.5 * 2^23 rounds a float of magnitude below 2^22 to the nearest integer.
// The low bits of the sum contain that integer. Unlike a conversion, this method is defined for
// NaN.
constexpr float kRoundingMagic = 12582912.0f;

// e^x = q (1 + t),  q = 2^n,  x = n ln 2 + f,  f in [-ln2/2, ln2/2],  t = e^f - 1 = f + u,  u >= 0
//
// The relative error of u is 1.4e-7. math/latent/gaussian.h relies on this bound.
template <typename F>
struct Exponential {
  F q, f, u, t;
};

// q and f for x in [-88.2, 89], where n is in [-127, 128]. At the lower end q is 0, and at the
// upper end it is inf. If x is NaN, f is NaN.
template <typename F>
struct Reduced {
  F q, f;
};

template <typename F>
VAE_FUSED_HD Reduced<F> reduced_exponent(F x) {
  constexpr float kMagic = kRoundingMagic + 127;  // the exponent bias, so that 2^n is a shift
  const F shifted = x * 1.44269504f + kMagic;
  const F n = shifted - kMagic;
  // ln 2 is split into two parts. The first has 9 significant bits, so its product with n is exact.
  return {real(bits(shifted) << 23), (x - n * 0.693359375f) - n * -2.12194440e-4f};
}

// (e^f - 1 - f) / f^2
template <typename F>
VAE_FUSED_HD F excess_polynomial(F f) {
  F p = 1.39012886e-3f;
  p = p * f + 8.36314633e-3f;
  p = p * f + 4.16668542e-2f;
  p = p * f + 1.66665778e-1f;
  return p * f + 0.5f;
}

// For x in [-88.2, 89].
template <typename F>
VAE_FUSED_HD Exponential<F> exponential(F x) {
  const Reduced<F> r = reduced_exponent(x);
  const F u = rounded_product(r.f * r.f, excess_polynomial(r.f));
  return {r.q, r.f, u, r.f + u};
}

// Clamps any argument to the domain of `exponential`.
template <typename F>
VAE_FUSED_HD F within_exponents(F x) {
  return larger(F(-88.2f), smaller(F(89.0f), x));
}

template <typename F>
VAE_FUSED_HD F exp(F x) {
  const Exponential<F> e = exponential(within_exponents(x));
  return (1.0f + e.t) * e.q;
}
VAE_FUSED_HD double exp(double x) { return exp_libm(x); }

// e^x for x <= 0, which needs only the lower bound. Horner's rule takes two instructions fewer than
// the sum 1 + t, and its error is 0.9 ulp, or 1.2 ulp without fused multiply-adds. `exp`
// nevertheless computes 1 + t, because sigma must be bit-identical whether a kernel needs it alone
// or together with t.
template <typename F>
VAE_FUSED_HD F exp_of_negative(F x) {
  const Reduced<F> r = reduced_exponent(larger(F(-88.2f), x));
  return ((excess_polynomial(r.f) * r.f + 1.0f) * r.f + 1.0f) * r.q;
}
VAE_FUSED_HD double exp_of_negative(double x) { return exp_libm(x); }

template <typename F>
VAE_FUSED_HD F exp_minus_abs(F x) {
  return exp_of_negative(minus_abs(x));
}

// Whether e^x is a normal number. If it is, e^(x/2) can be computed as the square root of e^x,
// which halves the error and requires only one polynomial for both exponentials.
constexpr float kNear = 87;

template <typename F>
VAE_FUSED_HD auto is_near(F x) {
  return abs(x) < F(kNear);
}

// k P(f), where ln(1 + f) = f + f^2 P(f), 1 + f in [sqrt(1/2), sqrt(2)]. k is a power of two that
// is folded into the coefficients. This costs half an ulp but no instruction, whereas multiplying f
// by k would take one.
template <int k, typename F>
VAE_FUSED_HD F log_polynomial(F f) {
  F p = k * 8.71121734e-2f;
  p = p * f + k * -1.42714977e-1f;
  p = p * f + k * 1.49129361e-1f;
  p = p * f + k * -1.65770248e-1f;
  p = p * f + k * 1.99631721e-1f;
  p = p * f + k * -2.50013560e-1f;
  p = p * f + k * 3.33339095e-1f;
  return p * f + k * -0.5f;
}

// k (n ln 2 + ln(1 + f)).
template <int k, typename F>
VAE_FUSED_HD F reduced_log(F n, F f) {
  F p = log_polynomial<k>(f);
  if constexpr (k == 1) return (f * f * p + f) + n * 0.693147182f;
  p = p * f + k * 1.0f;
  return f * p + n * (k * 0.693147182f);
}

// k ln u, u = 2^n (1 + f).
template <int k = 1, typename F>
VAE_FUSED_HD F log(F u) {
  const auto b = bits(u) - 0x3F3504F3u;  // sqrt(1/2): n is 0 from there to sqrt(2)
  return reduced_log<k>(F(shifted_to_float(b, 23)),
                        F(real((b & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f));
}

template <int k = 1>
VAE_FUSED_HD double log(double u) {
  return k * log_libm(u);
}

// Arguments below 2^-126 are first multiplied by 2^24.
template <typename F>
VAE_FUSED_HD F log_any(F x) {
  const F inf = real(0x7F800000u), nan = real(0x7FC00000u);
  const auto small = x < F(1.17549435e-38f);
  const auto is_ordinary = (x > F(1.17549421e-38f)) & (x < inf);
  F normal = x;
  if (!all(is_ordinary)) normal = select(small, x * 16777216.0f, x);
  F y = log(normal);
  if (!all(is_ordinary)) {
    const F special = select(x == F(0.0f), -inf, select(x == inf, inf, nan));
    y = select((x > F(0.0f)) & (x < inf), y - select(small, F(16.6355324f), F(0.0f)), special);
  }
  return y;
}
VAE_FUSED_HD double log_any(double x) { return log_libm(x); }

VAE_FUSED_HD float reciprocal(float x) { return reciprocal_libm(x); }
VAE_FUSED_HD double reciprocal(double x) { return 1.0 / x; }

// x / y. CPU vectors have their own overload, which divides. Scalars are multiplied by a
// reciprocal, which is approximate on a GPU.
template <typename T>
VAE_FUSED_HD T quotient(T x, T y) {
  return x * reciprocal(y);
}

VAE_FUSED_HD float sqrt_any(float x) { return sqrt_any_libm(x); }
VAE_FUSED_HD double sqrt_any(double x) { return sqrt_libm(x); }

// ln(1 + e) = e + e^2 P(e). One polynomial for all of [0, 1] takes 11 instructions. `reduced_log`
// takes 14, because it has a comparison and two selections.
template <typename F>
VAE_FUSED_HD F log1p_unit(F e) {
  F p = 2.07301206e-3f;
  p = p * e - 1.36317760e-2f;
  p = p * e + 4.19819318e-2f;
  p = p * e - 8.30746666e-2f;
  p = p * e + 1.24671593e-1f;
  p = p * e - 1.61293492e-1f;
  p = p * e + 1.98979348e-1f;
  p = p * e - 2.49885798e-1f;
  p = p * e + 3.33326906e-1f;
  p = p * e - 4.99999881e-1f;
  return e * e * p + e;
}
VAE_FUSED_HD double log1p_unit(double e) { return log1p_libm(e); }

// With e = e^(-2|t|), tanh |t| = (1 - e) / (1 + e). Near 0 the numerator cancels, so a polynomial
// replaces the quotient. The derivative is computed as tanh' = 4 e / (1 + e)^2. In 1 - tanh^2 the
// terms would cancel.
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

// r cos t and r sin t for t in [0, 2 pi]. t is reduced by half turns: f = t - j pi is in
// [-pi/2, pi/2], and r changes sign if j is odd. Half turns need longer polynomials than quarter
// turns, but sine and cosine are never swapped. The function takes 18 instructions instead of 26.
template <typename F>
VAE_FUSED_HD void polar(F r, F t, F& x, F& y) {
  const F shifted = t * 0.318309886f + kRoundingMagic;
  const F j = shifted - kRoundingMagic;
  // j is 0, 1 or 2, so its products are exact, and so is the first difference (Sterbenz's lemma).
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
  cosine = cosine * z - 0.5f;
  cosine = cosine * z + 1.0f;
  const F signed_r = real(bits(r) ^ (bits(shifted) << 31));
  x = signed_r * cosine;
  y = signed_r * (f * z * sine + f);
}

// In double, t is an angle in turns, in [0, 1].
VAE_FUSED_HD void polar(double r, double t, double& x, double& y) {
  sincos_turns_libm(t, y, x);
  x = r * x;
  y = r * y;
}

}  // namespace vae_fused::math
