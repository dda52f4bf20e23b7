// x ~ N(mean, sigma^2), d = (x - mean) / sigma:  -ln p = d^2 / 2 + ln sigma + constant
//
//   d/dx = d / sigma = -d/dmean        d/draw = (1 - d^2) dln sigma / draw
//
// Error in float, where sigma is an exponential: at most 8 * 2^-24 (d^2 / 2 + |ln sigma| +
// constant) for the value, 8 * 2^-24 |d| / sigma for the gradient of the mean, and 8 * 2^-24
// (1 + d^2) |dln sigma / draw| for the gradient of raw. For other bases, which have their own error
// (math/scale.h), the factor 8 in each bound becomes 15.
#pragma once

#include "math/likelihood/location_scale.h"

namespace vae_fused::math {

struct Gaussian {
  static constexpr int kInputs = 3;  // mean, raw (read if o.has_raw), x
  static constexpr bool kIsCount = false;

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options& o, const F (&in)[kInputs]) {
    const Deviation<F> q = deviation(o, in[0], in[1], in[2]);
    return F(0.5) * q.d * q.d + (q.log_sigma + F(o.constant));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    const Deviation<F> q = deviation(o, in[0], in[1], in[2]);
    out[2] = grad * q.d * q.precision;
    out[0] = -out[2];
    out[1] = chain(grad * (F(1) - q.d * q.d), q.dlog_sigma);
  }
};

}  // namespace vae_fused::math
