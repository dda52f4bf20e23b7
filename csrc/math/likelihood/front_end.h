// Maps a network's output `raw` to a positive parameter, and computes the derivative:
//
//   kIdentity   raw               1
//   kExp        e^raw             e^raw
//   kSoftplus   ln(1 + e^raw)     s(raw) = 1 / (1 + e^-raw)
//   kSoftmax    e^raw             e^raw
//
// With kSoftmax, `raw` is the logarithm of the mean, logit - logsumexp + library, which the kernel
// computes. The kernel also converts the gradient of `raw` to gradients of the logits and of the
// library. The mean is computed from its logarithm, never the logarithm from the mean, which may
// have underflowed.
//
// A negative parameter becomes NaN. kIdentity and kSoftplus saturate at 2^126, so that the
// reciprocal is a normal number.
#pragma once

#include "math/likelihood/options.h"
#include "math/special.h"

namespace vae_fused::math {

template <typename T>
constexpr T kLargestMean = sizeof(T) == 8 ? T(0x1p+900) : T(0x1p+126);
// A mean below this is nearly 0, and its logarithm is computed from the raw output instead.
template <typename T>
constexpr T kTinyMean = sizeof(T) == 8 ? T(0x1p-900) : T(0x1p-100);

VAE_FUSED_HD bool is_exponential(FrontEnd front) {
  return front == FrontEnd::kExp || front == FrontEnd::kSoftmax;
}

template <typename F>
struct Positive {
  F value, derivative;
};

template <typename F>
VAE_FUSED_HD Positive<F> positive(FrontEnd front, F raw) {
  using T = number_t<F>;
  if (front == FrontEnd::kIdentity) {
    const F value = smaller(F(kLargestMean<T>), select(raw < F(0), F(kNaN<T>), raw));
    return {value, F(1)};
  }
  if (front == FrontEnd::kSoftplus) {
    const F e = exp_minus_abs(raw), s = reciprocal(F(1) + e);
    const F value = smaller(F(kLargestMean<T>), larger(F(0), raw) + log1p_unit(e));
    return {value, select(raw < F(0), e * s, s)};
  }
  const F value = exp(raw);
  return {value, value};
}

// ln of the value. A softplus of a very negative raw is e^raw (1 - e^raw / 2 + ...), so its
// logarithm is nearly raw. If raw is below -17 in float or below -37 in double, the difference is
// below half a unit in the last place of 1.
template <typename F>
constexpr float kSoftplusIsExp = sizeof(number_t<F>) == 8 ? -37.0f : -17.0f;

template <typename F>
VAE_FUSED_HD F log_positive(FrontEnd front, F raw, F value) {
  if (front == FrontEnd::kIdentity) return log_any(value);
  if (front == FrontEnd::kSoftplus) return select(raw < F(kSoftplusIsExp<F>), raw, log_any(value));
  return raw;
}

// Returns `value`, or infinity, which is its limit, for an infinite raw mean. The mean itself
// saturates.
template <typename F>
VAE_FUSED_HD F at_infinity(F raw, F value) {
  const F infinite = F(kInfinity<number_t<F>>);
  return select(raw == infinite, infinite, value);
}

// derivative / (value + eps), the derivative of the logarithm; `shifted` is value + eps.
template <typename T, typename F>
VAE_FUSED_HD F log_derivative(FrontEnd front, T eps, const Positive<F>& p, F shifted) {
  if (is_exponential(front) && eps == T(0)) return F(1);
  const F ratio = p.derivative * reciprocal(larger(F(kLeastNormal<number_t<F>>), shifted));
  if (front != FrontEnd::kSoftplus) return select(shifted == F(0), F(kInfinity<T>), ratio);
  return select(shifted < F(kTinyMean<number_t<F>>), F(1), ratio);
}

template <typename T>
constexpr T kLargestTheta = sizeof(T) == 8 ? T(0x1p+400) : T(0x1p+64);
template <typename T>
constexpr T kLeastTheta = sizeof(T) == 8 ? T(0x1p-400) : T(0x1p-80);
template <typename T>
constexpr T kLogLeastTheta = T((sizeof(T) == 8 ? -400 : -80) * 0.69314718055994530942);

// The theta of a negative binomial, or the degrees of freedom of a Student-t. It depends only on
// its own operand, so a kernel may compute it once for all elements that share it.
template <typename Options, typename F>
VAE_FUSED_HD Positive<F> dispersion(const Options& o, F raw) {
  using T = number_t<F>;
  Positive<F> theta = positive(o.dispersion, raw);
  const auto is_clamped = theta.value > F(o.dispersion_max);
  const T most = smaller(T(o.dispersion_max), kLargestTheta<T>);
  theta.value = smaller(F(most), larger(F(kLeastTheta<T>), theta.value));
  if (o.dispersion == FrontEnd::kExp) theta.derivative = theta.value;
  if (o.dispersion == FrontEnd::kSoftplus) {
    theta.derivative = larger(F(kLeastTheta<T>), theta.derivative);
  }
  theta.derivative = select(is_clamped, F(0), theta.derivative);
  return theta;
}

}  // namespace vae_fused::math
