// The functions that a formula needs in addition to operators. cpu/vector.h defines the same
// functions for vectors, so that each formula is one template for both scalars and vectors:
//
//   number_t           the type of one lane
//   select             x where a condition is true, and y elsewhere
//   smaller, larger    x < y ? x : y and x > y ? x : y; a NaN in y is returned
//   abs, minus_abs     the magnitude, and minus the magnitude
//   all                whether a condition holds in every lane, so the alternative can be skipped
#pragma once

#include "math/platform.h"

namespace vae_fused::math {

template <typename F>
struct NumberOf {
  using type = typename F::Number;
};
template <>
struct NumberOf<float> {
  using type = float;
};
template <>
struct NumberOf<double> {
  using type = double;
};
template <typename F>
using number_t = typename NumberOf<F>::type;

template <typename T>
VAE_FUSED_HD T select(bool condition, T x, T y) {
  return condition ? x : y;
}

VAE_FUSED_HD double smaller(double x, double y) { return x < y ? x : y; }
VAE_FUSED_HD double larger(double x, double y) { return x > y ? x : y; }

VAE_FUSED_HD float abs(float x) { return std::fabs(x); }
VAE_FUSED_HD double abs(double x) { return std::fabs(x); }

VAE_FUSED_HD float minus_abs(float x) { return -std::fabs(x); }
VAE_FUSED_HD double minus_abs(double x) { return -std::fabs(x); }

VAE_FUSED_HD bool all(bool condition) { return condition; }

}  // namespace vae_fused::math
