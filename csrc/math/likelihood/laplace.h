// x ~ Laplace(mean, b), d = (x - mean) / b:  -ln p = |d| + ln b + constant
//
//   d/dx = sign(d) / b = -d/dmean        d/draw = (1 - |d|) dln b / draw
//
// The scale b is what math/scale.h calls sigma. At d = 0 the gradient is 0, as in torch's L1 loss.
//
// Error in float, where b is an exponential: at most 6 * 2^-24 (|d| + |ln b| + constant) for the
// value, 6 * 2^-24 / b for the gradient of the mean, and 6 * 2^-24 (1 + |d|) |dln b / draw| for the
// gradient of raw. For other bases, which have their own error (math/scale.h), the factor 6 in each
// bound becomes 15.
#pragma once

#include "math/likelihood/location_scale.h"

namespace vae_fused::math {

struct Laplace {
  static constexpr int kInputs = 3;  // mean, raw (read if o.has_raw), x
  static constexpr bool kIsCount = false;

  template <typename Options, typename F>
  static VAE_FUSED_HD F value(const Options& o, const F (&in)[kInputs]) {
    const Deviation<F> q = deviation(o, in[0], in[1], in[2]);
    return abs(q.d) + (q.log_sigma + F(o.constant));
  }

  template <typename Options, typename F>
  static VAE_FUSED_HD void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                   F (&out)[kInputs]) {
    const Deviation<F> q = deviation(o, in[0], in[1], in[2]);
    const F sign = select(q.d > F(0), F(1), select(q.d < F(0), F(-1), q.d));
    out[2] = grad * sign * q.precision;
    out[0] = -out[2];
    out[1] = chain(grad * (F(1) - abs(q.d)), q.dlog_sigma);
  }
};

}  // namespace vae_fused::math
