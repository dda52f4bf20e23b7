// What a call may choose about its Gaussians, as plain numbers: how a network's output becomes
// sigma, what the prior is, and how the KL and its gradient are weighed. The host fills in a
// Family<double>; kernels take it in the type of their arithmetic.
#pragma once

#include <algorithm>
#include <limits>

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
// a factor after: see kKinds in csrc/torch/options.cpp.
enum class ScaleBase : int32_t { kExp, kIdentity, kSqrt, kSoftplus, kSigmoid };

//   raw -> C(raw) -> x = gain C(raw) + shift -> sigma0 = unit base(x)
//       -> sigma = sqrt(sigma0^2 + var_floor) + std_floor
//
// C is min(max(raw, low), high), or c tanh(raw / c). kSqrt has root_floor instead of var_floor:
// sigma0 = unit sqrt(x + root_floor).
template <typename T>
struct ScaleOptions {
  ScaleBase base = ScaleBase::kExp;
  T gain = T(0.5), shift = 0;
  T low = -kInfinity<T>, high = kInfinity<T>;
  T soft_clamp = 0, per_soft_clamp = 0;  // c and 1 / c; 0: none
  T unit = 1, log_unit_squared = 0;      // and ln unit^2
  T var_floor = 0, std_floor = 0, root_floor = 0;
};

template <typename T>
struct Family {
  ScaleOptions<T> posterior, prior;
  T mu_soft_clamp = 0, per_mu_soft_clamp = 0;
  T prior_mean = 0, prior_precision = 1, prior_x = 0;  // m, 1 / tau, ln tau^2 where no tensors are
  T temperature = 1;
  T free_bits = 0;                   // the least value of an element's KL
  T to_posterior = 1, to_prior = 1;  // weights of the KL's gradient
  bool linear = false;               // 1/2 (d^2 + constant - x) instead of the KL
  T constant = 0;
};

// The default in every respect but a hard clamp: logvar, standard normal prior. A type of its own,
// so that the usual call's kernels hold the rest as constants, which the compiler folds away. The
// clamp costs them 1 to 4 instructions of some 90, and latents of images always have one.
template <typename T>
struct Plain {
  static constexpr T temperature = 1, mu_soft_clamp = 0;
  static constexpr bool linear = false;
  T low, high;
  T top;  // the lesser of high and where exponentials need no more

  VAE_FUSED_HD bool clamps() const { return is_clamp(low, high); }
};

template <typename T>
ScaleOptions<T> narrowed(const ScaleOptions<double>& o) {
  return {o.base,
          T(o.gain),
          T(o.shift),
          T(o.low),
          T(o.high),
          T(o.soft_clamp),
          T(o.per_soft_clamp),
          T(o.unit),
          T(o.log_unit_squared),
          T(o.var_floor),
          T(o.std_floor),
          T(o.root_floor)};
}

template <typename T>
Family<T> narrowed(const Family<double>& f) {
  return {narrowed<T>(f.posterior),
          narrowed<T>(f.prior),
          T(f.mu_soft_clamp),
          T(f.per_mu_soft_clamp),
          T(f.prior_mean),
          T(std::min(f.prior_precision, 1.0 / std::numeric_limits<T>::min())),
          T(f.prior_x),
          T(f.temperature),
          T(f.free_bits),
          T(f.to_posterior),
          T(f.to_prior),
          f.linear,
          T(f.constant)};
}

// Whether a Plain says all that there is to say. The clamp leaves 0 as it is: on a GPU the elements
// that fill up a vector are 0 and enter its row's sum, so their KL has to be 0. (A CPU's sums stop
// at the last element.)
inline bool is_plain(const Family<double>& f) {
  const ScaleOptions<double>& s = f.posterior;
  return s.base == ScaleBase::kExp && s.gain == 0.5 && s.shift == 0 && s.low <= 0 && s.high >= 0 &&
         s.soft_clamp == 0 && s.unit == 1 && s.var_floor == 0 && s.std_floor == 0 &&
         f.mu_soft_clamp == 0 && f.prior_mean == 0 && f.prior_precision == 1 && f.prior_x == 0 &&
         f.temperature == 1 && f.free_bits == 0 && f.to_posterior == 1 && !f.linear;
}

}  // namespace vae_fused::math
