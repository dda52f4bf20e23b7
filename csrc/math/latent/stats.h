// Statistics of a batch of posteriors for one latent dimension, from sums over the batch.
#pragma once

#include "math/platform.h"

namespace vae_fused::math {

// What the sums over a batch are of. The mean is shifted by that of the batch's first item,
// `shift`: where the variance is small beside the square of the mean, the squares of shifted means
// are small, too, and nothing cancels.
//
//   mean = shift + s / n      variance = (q - s^2 / n) / n      s = sum of mu - shift
//                                                               q = sum of (mu - shift)^2
enum Stat : int { kKlStat, kShifted, kSquares, kClamped, kNotFinite, kCount, kShift, kStats };

template <typename T>
struct LatentStats {
  T kl, mean, variance;
};

template <typename T>
VAE_FUSED_HD LatentStats<T> stats_of(const double (&sums)[kStats]) {
  const double n = sums[kCount], mean = sums[kShifted] / n;
  const double variance = sums[kSquares] / n - mean * mean;
  return {static_cast<T>(0.5 * sums[kKlStat] / n), static_cast<T>(sums[kShift] + mean),
          static_cast<T>(variance < 0 ? 0 : variance)};
}

}  // namespace vae_fused::math
