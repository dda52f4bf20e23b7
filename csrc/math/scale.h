// A network's output becomes sigma: each function once, its derivative beside it. Forward needs
// sigma and x = ln sigma^2; backward their derivatives with respect to the raw output, too.
//
//   raw -> C(raw) -> t = gain C(raw) + shift -> s = unit base(t) -> sigma = sqrt(s^2 + v) + f
//
// with v = var_floor, f = std_floor. Every base takes the same road, so that a kernel that learns
// its base at run time has each exponential and each logarithm once, with a branch around it. Where
// the base is a constant (the CPU kernels make it one outside of their loops) the branches fold.
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
// Before: t = gain C(raw) + shift
//
//   hard   C' = 1 within [low, high], 0 outside;  NaN stays
//   soft   C = c tanh(raw / c),  C' = sech^2(raw / c)
// ---------------------------------------------------------------------------------------------

template <typename T>
struct Limited {
  T x, dx;
};

// outer * inner, and nothing where inner is: beyond a clamp not even an infinite derivative passes.
template <typename T>
VAE_FUSED_HD T chain(T outer, T inner) {
  return inner == T(0) ? T(0) : outer * inner;
}

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

template <typename T>
VAE_FUSED_HD Limited<T> limit(const ScaleOptions<T>& o, T raw) {
  return affine(o, o.soft_clamp != T(0) ? soft_clamp(raw, o.soft_clamp, o.per_soft_clamp)
                                        : hard_clamp(raw, o.low, o.high));
}

// ---------------------------------------------------------------------------------------------
// base(t), its logarithm and their derivatives
//
//   base        base(t)         ln base^2                base'              (ln base^2)'
//   kExp        e^t             2t                       base               2
//   kIdentity   t               2 ln t                   1                  2 / t
//   kSqrt       sqrt(t)         ln t                     1 / (2 base)       1 / t
//   kSoftplus   ln(1 + e^t)     2 ln base                s(t)               2 s(t) / base
//   kSigmoid    s(t)            2 ln base                s(t) s(-t)         2 s(-t)
//
// with s(t) = 1 / (1 + e^-t). The last two go by e = e^-|t|, which never overflows:
//
//   ln(1 + e^t) = max(t, 0) + ln(1 + e)      s(|t|) = 1 / (1 + e),  s(-|t|) = e / (1 + e)
//   ln s(t) = min(t, 0) - ln(1 + e)
//
// Where t is very negative softplus underflows, but its logarithm does not: ln(1 + e) = e - e^2 / 2
// + ..., hence ln base = t - e / 2, and the KL stays finite. Below -16 that is all there is in
// float, e^2 < 2^-46; below -37 in double.
//
// After: a floor, if there is one, and where the logarithm is not known already it is taken of the
// result, in the square where there is no root to spoil it:
//
//   sigma' = s' s / sqrt(s^2 + v)      (ln sigma^2)' = 2 sigma' / sigma
//
// A large s absorbs v, long before its square overflows.
// ---------------------------------------------------------------------------------------------

template <typename T>
constexpr T kAbsorbs = sizeof(T) == 8 ? T(0x1p+300) : T(0x1p+60);

template <typename T>
VAE_FUSED_HD bool has_floor(const ScaleOptions<T>& o) {
  return o.var_floor != T(0) || o.std_floor != T(0);
}

template <typename T>
VAE_FUSED_HD Scale<T> scale_of(const ScaleOptions<T>& o, ScaleBase base, bool floored,
                               const Limited<T>& limited) {
  const T t = limited.x;
  const bool logistic = base == ScaleBase::kSoftplus || base == ScaleBase::kSigmoid;
  // Whether the base says what its logarithm is: softplus does where it is tiny.
  bool known = base == ScaleBase::kExp || base == ScaleBase::kSigmoid;
  T s = t, ds = T(1), x = T(0), dx = T(0);
  if (base == ScaleBase::kExp || logistic) {
    const T e = exp(base == ScaleBase::kExp ? t : -std::fabs(t));
    if (!logistic) {
      s = ds = e;
      x = t + t;
      dx = T(2);
    } else {
      const T log_1p_e = log1p_unit(e), s_plus = reciprocal(T(1) + e), s_minus = e * s_plus;
      const bool negative = t < T(0);
      const T sigmoid = negative ? s_minus : s_plus, other = negative ? s_plus : s_minus;
      if (base == ScaleBase::kSigmoid) {
        s = sigmoid;
        ds = s * other;
        x = T(2) * ((negative ? t : T(0)) - log_1p_e);
        dx = T(2) * other;
      } else {
        s = (negative ? T(0) : t) + log_1p_e;
        ds = sigmoid;
        known = t < (sizeof(T) == 8 ? T(-37) : T(-16));
        x = t + t - e;
        dx = T(2) - e;
      }
    }
  } else if (base == ScaleBase::kSqrt) {
    s = sqrt_any(t);
    ds = T(0.5) * reciprocal(s);
  }
  s = o.unit * s;
  ds = chain(o.unit * ds, limited.dx);
  x += o.log_unit_squared;
  dx = chain(dx, limited.dx);

  const T variance = s * s + o.var_floor;
  const bool large = s > kAbsorbs<T>;
  if (floored && o.var_floor != T(0)) {
    const T root = sqrt_any(variance);
    ds = large ? ds : ds * (s * reciprocal(root));
    s = large ? s : root;
  }
  if (floored) s += o.std_floor;
  if (floored || base == ScaleBase::kIdentity || base == ScaleBase::kSqrt ||
      base == ScaleBase::kSoftplus) {
    const bool squared = floored ? o.std_floor == T(0) && !large : base == ScaleBase::kSqrt;
    const T log = log_any(!squared ? s : floored ? variance : t);
    const T taken =
        (squared ? log : T(2) * log) + (squared && !floored ? o.log_unit_squared : T(0));
    const bool use = floored || !known;
    // A negative standard deviation is none: NaN, as is its logarithm.
    if (base == ScaleBase::kIdentity && !floored) s = s < T(0) ? log : s;
    x = use ? taken : x;
    dx = use ? chain(T(2) * reciprocal(s), ds) : dx;
  }
  return {s, x, ds, dx};
}

template <typename T>
VAE_FUSED_HD Scale<T> scale_of(const ScaleOptions<T>& o, T raw) {
  return scale_of(o, o.base, has_floor(o), limit(o, raw));
}

template <ScaleBase base>
using BaseConstant = std::integral_constant<ScaleBase, base>;

// Calls visit(BaseConstant<base>), for loops to be compiled for each base.
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

// Calls visit(std::true_type) or visit(std::false_type), likewise.
template <typename Visit>
VAE_FUSED_HD void with_flag(bool flag, const Visit& visit) {
  flag ? visit(std::true_type{}) : visit(std::false_type{});
}

}  // namespace vae_fused::math
