// The options of a scale, as plain data: how a network's output is mapped to sigma. math/scale.h
// contains the formulas.
#pragma once

#include <limits>

#include "math/options.h"
#include "math/platform.h"

namespace vae_fused::math {

// These are constants and not inline functions, because the linker keeps a single copy of an inline
// function, and the files of all instruction sets would then call that copy.
template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

template <typename T>
VAE_FUSED_HD bool is_clamp(T low, T high) {
  return low > -kInfinity<T> || high < kInfinity<T>;
}

// The functions base(x) of math/scale.h. Each public kind is one of these functions, with an affine
// map before it and a factor after it: see kKinds in csrc/torch/scale.cpp.
enum class ScaleBase : int32_t { kExp, kIdentity, kSqrt, kSoftplus, kSigmoid };

//   raw -> C(raw) -> x = gain C(raw) + shift -> sigma0 = unit base(x)
//       -> sigma = max(sqrt(sigma0^2 + var_floor) + std_floor, std_min)
//
// C is min(max(raw, low), high), or c tanh(raw / c) if c = soft_clamp is not 0. kSqrt has
// root_floor instead of var_floor: sigma0 = unit sqrt(x + root_floor).
//
// Python passes the kind, and the user's gain and shift. csrc/torch/scale.cpp derives the fields
// that also depend on the kind's own gain and unit, and on the beta of softplus.
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
  DERIVED(T, per_soft_clamp, 0) /* 1 / c, 0 if none */  \
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

// The numbers that Python passes, in this order.
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

// Copies the given options and leaves derived fields at their defaults.
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
