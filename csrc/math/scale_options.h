// What a call may choose about a scale, that is how a network's output becomes sigma, as plain
// numbers: see math/scale.h for the formulas.
#pragma once

#include <limits>

#include "math/options.h"
#include "math/platform.h"

namespace vae_fused::math {

// Constants, as a call would be a function that the files of all instruction sets share.
template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

template <typename T>
VAE_FUSED_HD bool is_clamp(T low, T high) {
  return low > -kInfinity<T> || high < kInfinity<T>;
}

// The functions sigma0(x) of math/scale.h. The public kinds are these with an affine map before and
// a factor after: see kKinds in csrc/torch/scale.cpp.
enum class ScaleBase : int32_t { kExp, kIdentity, kSqrt, kSoftplus, kSigmoid };

//   raw -> C(raw) -> x = gain C(raw) + shift -> sigma0 = unit base(x)
//       -> sigma = max(sqrt(sigma0^2 + var_floor) + std_floor, std_min)
//
// C is min(max(raw, low), high), or c tanh(raw / c) with c = soft_clamp, unless that is 0. kSqrt
// has root_floor instead of var_floor: sigma0 = unit sqrt(x + root_floor).
//
// What Python gives selects a kind, and its gain and shift are the user's. The kind's own gain and
// unit, and the beta of softplus, are in what csrc/torch/scale.cpp derives.
#define VAE_FUSED_SCALE_OPTIONS(OPTION, GIVEN, DERIVED) \
  GIVEN(kind, 0)                                        \
  DERIVED(ScaleBase, base, ScaleBase::kExp)             \
  GIVEN(gain, 1)                                        \
  DERIVED(T, gain, 0.5)                                 \
  GIVEN(shift, 0)                                       \
  DERIVED(T, shift, 0)                                  \
  OPTION(T, low, -kInfinity<T>)                         \
  OPTION(T, high, kInfinity<T>)                         \
  OPTION(T, soft_clamp, 0)                              \
  DERIVED(T, per_soft_clamp, 0) /* 1 / c; 0 without */  \
  GIVEN(beta, 1)                                        \
  DERIVED(T, unit, 1)                                   \
  DERIVED(T, log_unit_squared, 0) /* ln unit^2 */       \
  OPTION(T, var_floor, 0)                               \
  OPTION(T, std_floor, 0)                               \
  DERIVED(T, root_floor, 0)                             \
  OPTION(T, std_min, 0)                                 \
  VAE_FUSED_EXTRA_SCALE_OPTIONS(OPTION)

template <typename T>
struct ScaleOptions {
  VAE_FUSED_FIELDS(VAE_FUSED_SCALE_OPTIONS)
};

// What crosses from Python, in this order.
struct GivenScale {
  using T = double;
  VAE_FUSED_NUMBERS(VAE_FUSED_SCALE_OPTIONS)

  template <typename Visit>
  void visit_numbers(const Visit& visit) {
    VAE_FUSED_VISIT_NUMBERS(VAE_FUSED_SCALE_OPTIONS)
  }
};

template <typename T>
ScaleOptions<T> narrowed(const ScaleOptions<double>& from) {
  ScaleOptions<T> to;
  VAE_FUSED_CONVERT_FIELDS(VAE_FUSED_SCALE_OPTIONS)
  return to;
}

// The options as they are given, and the defaults of what is derived.
inline ScaleOptions<double> underived(const GivenScale& from) {
  using T = double;
  ScaleOptions<double> to;
  VAE_FUSED_CONVERT_OPTIONS(VAE_FUSED_SCALE_OPTIONS)
  return to;
}

inline bool operator==(const ScaleOptions<double>& a, const ScaleOptions<double>& b) {
  return VAE_FUSED_EQUAL_FIELDS(VAE_FUSED_SCALE_OPTIONS);
}

}  // namespace vae_fused::math
