// Maps a network's output to sigma. Each function is defined once, together with its derivative.
// The forward pass needs sigma and x = ln sigma^2; the backward pass also needs their derivatives
// with respect to the raw output.
//
//   raw -> C(raw) -> t = gain C(raw) + shift -> s = unit base(t) -> sigma = sqrt(s^2 + v) + f
//       -> max(sigma, std_min)
//
// with v = var_floor and f = std_floor. kSqrt instead adds root_floor = v / unit^2 under its own
// root, which gives the same sigma. With v instead, the derivative of sigma at a variance of 0
// would be 0 times infinity. All bases share one code path, so that a kernel whose base is a
// run-time value contains each exponential and each logarithm once, with a branch around it. The
// CPU kernels make the base a compile-time constant outside their loops, and the compiler folds the
// branches.
#pragma once

#include <type_traits>

#include "math/elementary.h"
#include "math/scale_options.h"

namespace vae_fused::math {

template <typename F>
struct Scale {
  F sigma, x;    // x = ln sigma^2
  F dsigma, dx;  // with respect to the input of sigma
};

// ---------------------------------------------------------------------------------------------
// Before the base: t = gain C(raw) + shift, to which kSqrt adds root_floor
//
//   hard   C' = 1 within [low, high], 0 outside;  NaN stays NaN
//   soft   C = c tanh(raw / c),  C' = sech^2(raw / c)
// ---------------------------------------------------------------------------------------------

template <typename F>
struct Clamped {
  F x, dx;
};

// Returns outer * inner, but 0 where inner is 0, because outside the bounds of a clamp even an
// infinite outer derivative has no effect.
template <typename F>
VAE_FUSED_HD F chain(F outer, F inner) {
  return select(inner == F(0), F(0), outer * inner);
}

template <typename T, typename F>
VAE_FUSED_HD Clamped<F> soft_clamp(F raw, T c, T per_c) {
  const Tanh<F> t = tanh(raw * per_c);
  return {c * t.value, t.derivative};
}

template <typename T, typename F>
VAE_FUSED_HD F clamp(F raw, T low, T high) {
  return smaller(F(high), larger(F(low), raw));
}

template <typename T, typename F>
VAE_FUSED_HD auto is_outside(F raw, T low, T high) -> decltype(raw < raw) {
  return (raw < F(low)) | (raw > F(high));
}

template <typename T, typename F>
VAE_FUSED_HD Clamped<F> hard_clamp(F raw, T low, T high) {
  return {clamp(raw, low, high), select(is_outside(raw, low, high), F(0), F(1))};
}

template <typename T, typename F>
VAE_FUSED_HD Clamped<F> soft_or_hard_clamp(const ScaleOptions<T>& o, F raw) {
  return o.soft_clamp != T(0) ? soft_clamp(raw, o.soft_clamp, o.per_soft_clamp)
                              : hard_clamp(raw, o.low, o.high);
}

// 1 if the bounds of a clamp change the raw scale, otherwise 0. A soft clamp changes every value,
// so with a soft clamp the result is 1 if the magnitude of the raw scale exceeds the clamp's bound.
template <typename T, typename F>
VAE_FUSED_HD F is_clamped(const ScaleOptions<T>& o, F raw) {
  if (o.soft_clamp != T(0)) return select(abs(raw) > F(o.soft_clamp), F(1), F(0));
  return select(is_outside(raw, o.low, o.high), F(1), F(0));
}

// 1 if mu or raw is infinite or NaN, otherwise 0. An infinity or a NaN minus itself is NaN.
template <typename F>
VAE_FUSED_HD F is_not_finite(F mu, F raw) {
  return select((mu - mu) + (raw - raw) == F(0), F(0), F(1));
}

// Returns t. A negative standard deviation becomes NaN, and so does a variance that is negative
// after its floor has been added.
template <typename T, typename F>
VAE_FUSED_HD F base_argument(const ScaleOptions<T>& o, ScaleBase base, F x) {
  F t = o.gain * x + o.shift;
  if (base == ScaleBase::kIdentity || base == ScaleBase::kSqrt) {
    t = t + o.root_floor;
    t = select(t < F(0), F(kNaN<T>), t);
  }
  return t;
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
// with s(t) = 1 / (1 + e^-t). kSoftplus and kSigmoid use e = e^-|t|, which never overflows:
//
//   ln(1 + e^t) = max(t, 0) + ln(1 + e)      s(|t|) = 1 / (1 + e),  s(-|t|) = e / (1 + e)
//   ln s(t) = min(t, 0) - ln(1 + e)
//
// Where t is very negative, softplus underflows but its logarithm does not: ln(1 + e) = e - e^2 / 2
// + ..., hence ln base = t - e / 2, and the KL stays finite. Where the base is tiny, further terms
// are below the precision: e^2 < 2^-46 in float and < 2^-106 in double.
//
// After the base, the floors are applied. If there are none and the base provides ln sigma^2, that
// value is used. Otherwise ln sigma^2 is computed as 2 ln sigma or, where sigma is a square root,
// as the logarithm of the radicand. With v = var_floor and s from the base, the derivatives are:
//
//   sigma' = s' s / sqrt(s^2 + v)      (ln sigma^2)' = 2 sigma' / sigma
//
// For a large s, s^2 + v rounds to s^2 long before s^2 overflows. Below std_min both derivatives
// are 0. Where an exponential overflows, the floors no longer affect sigma, and sigma' / sigma
// would be inf / inf, so the derivative of ln sigma^2 is that of the base.
// ---------------------------------------------------------------------------------------------

// In float, e^t is computed as the square root of e^2t where e^2t is normal, and is then
// bit-identical to that of the default call. In double, e^t is computed directly. Because only the
// argument is selected, the code contains a single exponential. With two exponentials, the sm_120
// code was 0.1 MB larger.
template <typename F>
VAE_FUSED_HD F exponent_of(F t) {
  return select(is_near(t + t), t + t, t);
}
template <typename F>
VAE_FUSED_HD F from_exponential(F t, F e) {
  return select(is_near(t + t), sqrt_normal(e), e);
}
VAE_FUSED_HD double exponent_of(double t) { return t; }
VAE_FUSED_HD double from_exponential(double, double e) { return e; }

template <typename T>
constexpr T kLargest = std::numeric_limits<T>::max();
template <typename T>
constexpr T kTiny = sizeof(T) == 8 ? T(1e-16) : T(1e-7);
template <typename T>
constexpr T kAbsorbsFloor = sizeof(T) == 8 ? T(0x1p+300) : T(0x1p+60);

template <typename T>
VAE_FUSED_HD bool has_floor(const ScaleOptions<T>& o) {
  return o.var_floor != T(0) || o.std_floor != T(0) || o.std_min != T(0);
}

// Returns s and its derivative, and x and its derivative if the base provides them. `slope` is C'.
template <typename T, typename F>
VAE_FUSED_HD Scale<F> base_of(const ScaleOptions<T>& o, ScaleBase base, F t, F slope) {
  const bool logistic = base == ScaleBase::kSoftplus || base == ScaleBase::kSigmoid;
  F s = t, ds = F(1), x = F(0), dx = F(0);
  if (base == ScaleBase::kExp || logistic) {
    const F e = exp(logistic ? -abs(t) : exponent_of(t));
    if (!logistic) {
      s = ds = from_exponential(t, e);
      x = t + t;
      dx = F(2);
    } else {
      const F log_1p_e = log1p_unit(e), s_plus = reciprocal(F(1) + e), s_minus = e * s_plus;
      const auto negative = t < F(0);
      const F sigmoid = select(negative, s_minus, s_plus);
      if (base == ScaleBase::kSigmoid) {
        const F other = select(negative, s_plus, s_minus);
        s = sigmoid;
        ds = s * other;
        x = F(2) * (smaller(F(0), t) - log_1p_e);
        dx = F(2) * other;
      } else {
        s = larger(F(0), t) + log_1p_e;
        ds = sigmoid;
        x = t + t - e;
        dx = F(2) - e;
      }
    }
  } else if (base == ScaleBase::kSqrt) {
    s = sqrt_any(t);
    ds = F(0.5) * reciprocal(s);
  } else {
    ds = select(t == t, F(1), t);  // NaN if t is NaN, as in the other branches
  }
  return {o.unit * s, x + o.log_unit_squared, chain(o.unit * o.gain * ds, slope),
          chain(o.gain * dx, slope)};
}

// Applies the floors, and computes the logarithm unless the base provides it.
template <typename T, typename F>
VAE_FUSED_HD Scale<F> apply_floors(const ScaleOptions<T>& o, ScaleBase base, bool floored, F t,
                                   const Scale<F>& b) {
  F s = b.sigma, x = b.x, ds = b.dsigma, dx = b.dx;
  const F variance = s * s + o.var_floor;
  const auto large = s > F(kAbsorbsFloor<T>), tiny = s < F(kTiny<T> * o.unit);
  if (floored && o.var_floor != T(0)) {
    const F root = sqrt_any(variance);
    ds = select(large, ds, ds * (s * reciprocal(root)));
    s = select(large, s, root);
  }
  if (floored) {
    s = s + o.std_floor;
    ds = select(s < F(o.std_min), F(0), ds);
    s = larger(F(o.std_min), s);
  }
  if (floored || base == ScaleBase::kIdentity || base == ScaleBase::kSqrt ||
      base == ScaleBase::kSoftplus) {
    F square = s, factor = F(2);  // ln sigma^2 = factor ln square
    if (floored ? o.std_floor == T(0) && o.std_min == T(0) : base == ScaleBase::kSqrt) {
      square = floored ? select(large, s, variance) : t;
      factor = floored ? select(large, F(2), F(1)) : F(1);
    }
    F log_variance = factor * log_any(square), dlog_variance = chain(F(2) * reciprocal(s), ds);
    if (base == ScaleBase::kSqrt && !floored) log_variance = log_variance + o.log_unit_squared;
    if (base == ScaleBase::kSoftplus && !floored) {
      log_variance = select(tiny, x, log_variance);
      dlog_variance = select(tiny, dx, dlog_variance);
    }
    if (floored) {
      const F largest = F(kLargest<T>);
      dlog_variance = select((s > largest) & (abs(ds) > largest), dx, dlog_variance);
    }
    x = log_variance;
    dx = dlog_variance;
  }
  return {s, x, ds, dx};
}

template <typename T, typename F>
VAE_FUSED_HD Scale<F> scale_of(const ScaleOptions<T>& o, ScaleBase base, bool floored,
                               const Clamped<F>& clamped) {
  const F t = base_argument(o, base, clamped.x);
  return apply_floors(o, base, floored, t, base_of(o, base, t, clamped.dx));
}

template <typename T, typename F>
VAE_FUSED_HD Scale<F> scale_of(const ScaleOptions<T>& o, F raw) {
  return scale_of(o, o.base, has_floor(o), soft_or_hard_clamp(o, raw));
}

template <ScaleBase base>
using BaseConstant = std::integral_constant<ScaleBase, base>;

// Calls visit(BaseConstant<base>), so that loops are compiled for each base.
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
    case ScaleBase::kSigmoid:
      return visit(BaseConstant<ScaleBase::kSigmoid>{});
  }
}

}  // namespace vae_fused::math
