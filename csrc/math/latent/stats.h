// Computes the statistics of a batch of posteriors for one latent dimension from sums over groups
// of its elements.
#pragma once

#include <cstdint>

#include "math/platform.h"

namespace vae_fused::math {

// Count, mean, and the sum of the squared distances from the mean.
struct Moments {
  double n, mean, squares;
};

// The same value `shift` is subtracted from each element. s is the sum of the differences, and q is
// the sum of their squares:
//
//   mean = shift + s / n      squares = q - s^2 / n
//
// If the shift is one of the elements, nothing cancels where the mean is large compared to the
// standard deviation.
VAE_FUSED_HD Moments moments(double n, double shift, double s, double q) {
  if (n == 0) return {0, 0, 0};
  const double mean = s / n;
  return {n, shift + mean, q - s * mean};
}

// The contribution of a group to the sum of squares of all elements around their `mean` (Chan,
// Golub and LeVeque 1979).
VAE_FUSED_HD double squares_around(const Moments& group, double mean) {
  const double distance = group.mean - mean;
  return group.n == 0 ? 0.0 : group.squares + group.n * distance * distance;
}

// The sums of a group that are stored until the end of a call: twice the KLs, the fields of
// Moments, and counts.
enum Stat : int { kKlStat, kMean, kSquares, kClamped, kNotFinite, kCount, kStats };

template <typename T>
struct LatentStats {
  T kl, mean, variance;
};

template <typename T>
VAE_FUSED_HD LatentStats<T> stats_of(double kl_times_two, const Moments& all) {
  const double variance = all.squares / all.n;  // NaN without elements, like the other results
  const double mean = all.n == 0 ? variance : all.mean;
  return {static_cast<T>(0.5 * kl_times_two / all.n), static_cast<T>(mean),
          static_cast<T>(variance < 0 ? 0 : variance)};
}

}  // namespace vae_fused::math
