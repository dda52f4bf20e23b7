// A network's output becomes sigma: each function once, its derivative beside it. Forward needs
// sigma and x = ln sigma^2; backward their derivatives with respect to the raw output, too.
#pragma once

#include <type_traits>

#include "math/elementary.h"
#include "math/family.h"

namespace vae_fused::math {

template <typename T>
struct Scale {
  T sigma, x;    // x = ln sigma^2
  T dsigma, dx;  // with respect to what sigma is a function of
};

// ---------------------------------------------------------------------------------------------
// sigma0(x): the bases
//
//   base        sigma0          ln sigma0^2              sigma0'            (ln sigma0^2)'
//   kExp        e^x             2x                       sigma0             2
//   kIdentity   x               2 ln x                   1                  2 / x
//   kSqrt       sqrt(x)         ln x                     1 / (2 sigma0)     1 / x
//   kSoftplus   ln(1 + e^x)     2 ln sigma0              s(x)               2 s(x) / sigma0
//   kSigmoid    s(x)            2 ln sigma0              s(x) s(-x)         2 s(-x)
//
// with s(x) = 1 / (1 + e^-x). The last two go by e = e^-|x|, which never overflows:
//
//   ln(1 + e^x) = max(x, 0) + ln(1 + e)      s(|x|) = 1 / (1 + e),  s(-|x|) = e / (1 + e)
//   ln s(x) = min(x, 0) - ln(1 + e)
//
// Where x is very negative softplus underflows, but its logarithm does not: ln(1 + e) = e - e^2 / 2
// + ..., hence ln sigma0 = x - e / 2, and the KL stays finite. Below -16 that is all there is in
// float, e^2 < 2^-46; below -37 in double.
// ---------------------------------------------------------------------------------------------

template <ScaleBase base, typename T>
VAE_FUSED_HD Scale<T> scale_base(T x) {
  if constexpr (base == ScaleBase::kExp) {
    const T sigma = exp(x);
    return {sigma, x + x, sigma, T(2)};
  } else if constexpr (base == ScaleBase::kIdentity) {
    const T log_x = log_any(x);  // NaN below 0, where there is no sigma
    return {x < T(0) ? log_x : x, T(2) * log_x, T(1), T(2) * reciprocal(x)};
  } else if constexpr (base == ScaleBase::kSqrt) {
    const T sigma = sqrt_any(x);
    return {sigma, log_any(x), T(0.5) * reciprocal(sigma), reciprocal(x)};
  } else {
    const T e = exp(-std::fabs(x));
    const T log_1p_e = log1p_unit(e), s_plus = reciprocal(T(1) + e), s_minus = e * s_plus;
    const bool negative = x < T(0);
    const T s = negative ? s_minus : s_plus;
    if constexpr (base == ScaleBase::kSigmoid) {
      const T other = negative ? s_plus : s_minus;
      return {s, T(2) * ((negative ? x : T(0)) - log_1p_e), s * other, T(2) * other};
    } else {
      const T sigma = (negative ? T(0) : x) + log_1p_e;
      const bool tiny = x < (sizeof(T) == 8 ? T(-37) : T(-16));
      const T ratio = s * reciprocal(tiny ? T(1) : sigma);
      return {sigma, T(2) * (tiny ? x - T(0.5) * e : log_any(sigma)), s,
              tiny ? T(2) - e : T(2) * ratio};
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Before: x = gain C(raw) + shift
//
//   hard   C' = 1 within [low, high], 0 outside, as torch.clamp;  NaN stays
//   soft   C = c tanh(raw / c),  C' = sech^2(raw / c)
// ---------------------------------------------------------------------------------------------

template <typename T>
struct Limited {
  T x, dx;
};

template <typename T>
VAE_FUSED_HD Limited<T> soft_clamp(T raw, T c, T per_c) {
  const Tanh<T> t = tanh(raw * per_c);
  return {c * t.value, t.derivative};
}

template <typename T>
VAE_FUSED_HD Limited<T> hard_clamp(T raw, T low, T high) {
  const bool below = raw<low, above = raw> high;
  return {below ? low : above ? high : raw, below || above ? T(0) : T(1)};
}

template <typename T>
VAE_FUSED_HD Limited<T> affine(const ScaleOptions<T>& o, const Limited<T>& c) {
  return {o.gain * c.x + o.shift, o.gain * c.dx};
}

// ---------------------------------------------------------------------------------------------
// After: sigma = sqrt(s^2 + var_floor) + std_floor, s = unit base(x)
//
//   sigma' = s' s / sqrt(s^2 + var_floor)      (ln sigma^2)' = 2 sigma' / sigma
//
// The logarithm is that of the square where there is no root to spoil it.
// ---------------------------------------------------------------------------------------------

template <typename T>
VAE_FUSED_HD Scale<T> in_units(const ScaleOptions<T>& o, const Scale<T>& s, T dx) {
  return {o.unit * s.sigma, s.x + o.log_unit_squared, o.unit * s.dsigma * dx, s.dx * dx};
}

template <typename T>
VAE_FUSED_HD bool has_floor(const ScaleOptions<T>& o) {
  return o.var_floor != T(0) || o.std_floor != T(0);
}

template <typename T>
VAE_FUSED_HD Scale<T> above_floor(const ScaleOptions<T>& o, const Scale<T>& s) {
  const T variance = s.sigma * s.sigma + o.var_floor;
  const bool rooted = o.var_floor != T(0);
  const T root = rooted ? sqrt_any(variance) : s.sigma, sigma = root + o.std_floor;
  const T dsigma = rooted ? s.dsigma * (s.sigma * reciprocal(root)) : s.dsigma;
  const T x = o.std_floor == T(0) ? log_any(variance) : T(2) * log_any(sigma);
  return {sigma, x, dsigma, T(2) * dsigma * reciprocal(sigma)};
}

// ---------------------------------------------------------------------------------------------
// All of it. The CPU kernels go through a tile a stage at a time instead, the base switched outside
// of the loop.
// ---------------------------------------------------------------------------------------------

template <typename T>
VAE_FUSED_HD Limited<T> limit(const ScaleOptions<T>& o, T raw) {
  return affine(o, o.soft_clamp != T(0) ? soft_clamp(raw, o.soft_clamp, o.per_soft_clamp)
                                        : hard_clamp(raw, o.low, o.high));
}

template <ScaleBase base>
using BaseConstant = std::integral_constant<ScaleBase, base>;

// Calls visit(BaseConstant<base>).
template <typename Visit>
VAE_FUSED_HD void with_base(ScaleBase base, const Visit& visit) {
  switch (base) {
    case ScaleBase::kExp:
      return visit(BaseConstant<ScaleBase::kExp>{});
    case ScaleBase::kIdentity:
      return visit(BaseConstant<ScaleBase::kIdentity>{});
    case ScaleBase::kSqrt:
      return visit(BaseConstant<ScaleBase::kSqrt>{});
    case ScaleBase::kSoftplus:
      return visit(BaseConstant<ScaleBase::kSoftplus>{});
    default:
      return visit(BaseConstant<ScaleBase::kSigmoid>{});
  }
}

// N elements with one branch for each choice.
template <int N, typename T>
VAE_FUSED_HD void scale_of(const ScaleOptions<T>& o, const T (&raw)[N], Scale<T> (&out)[N]) {
  with_base(o.base, [&](auto base) {
    VAE_FUSED_UNROLL
    for (int j = 0; j < N; ++j) {
      const Limited<T> limited = limit(o, raw[j]);
      out[j] = in_units(o, scale_base<decltype(base)::value>(limited.x), limited.dx);
    }
  });
  if (!has_floor(o)) return;
  VAE_FUSED_UNROLL
  for (int j = 0; j < N; ++j) out[j] = above_floor(o, out[j]);
}

}  // namespace vae_fused::math
