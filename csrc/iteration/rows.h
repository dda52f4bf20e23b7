// Values for each row of a call: sums over rows that a forward kernel writes, and their gradients,
// which a backward kernel reads. Both are float, or double for DType::kFloat64.
#pragma once

#include <cstdint>

#include "math/platform.h"

namespace vae_fused {

// data[row] = scale * sum over the row of what the kernel computes for each element.
struct RowSums {
  void* data = nullptr;  // [rows]; absent: no sums
  double scale = 1.0;
  double* partials = nullptr;  // [tiles], sums of tiles without the scale, where tiles_per_row > 1
};

// An element of a row has the gradient scale * data[row * stride].
struct RowGrads {
  const void* data = nullptr;  // [rows]; absent: the sums were not used
  int64_t stride = 1;          // 0: one value for all rows
  double scale = 1.0;
};

// Those of a sample, where each has sums of its own: `rows` values behind those of the one before.
template <typename T>
VAE_FUSED_HD RowGrads of_sample(RowGrads grads, int64_t rows, int64_t sample) {
  grads.data = static_cast<const T*>(grads.data) + sample * rows * grads.stride;
  return grads;
}

}  // namespace vae_fused
