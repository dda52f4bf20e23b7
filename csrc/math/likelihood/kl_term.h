// The KL term of an evidence lower bound. A KL of k nats adds beta p(k) to the loss:
//
//   p(k) = k                    without a capacity
//   p(k) = |k - capacity|       dp/dk = sign(k - capacity), and 0 where they are equal
//
// A capacity that increases during training keeps the KL at that many nats (Burgess et al. 2018,
// "Understanding disentangling in beta-VAE", equation 8, whose gamma is beta here).
#pragma once

#include "math/lanes.h"

namespace vae_fused::math {

VAE_FUSED_HD double kl_penalty(bool has_capacity, double capacity, double kl) {
  return has_capacity ? abs(kl - capacity) : kl;
}

VAE_FUSED_HD double kl_penalty_slope(bool has_capacity, double capacity, double kl) {
  if (!has_capacity) return 1;
  // If the KL is NaN, so is the slope.
  return kl > capacity ? 1 : kl < capacity ? -1 : kl - capacity;
}

}  // namespace vae_fused::math
