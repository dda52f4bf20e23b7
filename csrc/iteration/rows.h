// The per-row values of a call: the row sums that a forward kernel writes, and their gradients,
// which a backward kernel reads. Sums and gradients have the dtype float, or double for
// DType::kFloat64.
#pragma once

#include <cstdint>

#include "math/platform.h"

namespace vae_fused {

// data[row] = factor * the sum of the values that the kernel computes for the elements of the row.
struct RowSums {
  void* data = nullptr;  // [rows]; absent: no sums
  double factor = 1.0;
  double* partials = nullptr;  // [tiles] if tiles_per_row > 1: tile sums without the factor
};

// For each element of a row, the gradient of its value is factor * data[row * stride].
struct RowGrads {
  const void* data = nullptr;  // [rows]; absent: the sums have no gradient
  int64_t stride = 1;          // 0: one value for all rows
  double factor = 1.0;
};

// The gradients of one sample, for calls in which each sample has its own sums. The gradients of a
// sample begin `rows` values after those of the previous sample.
template <typename T>
VAE_FUSED_HD RowGrads row_grads_of_sample(RowGrads grads, int64_t rows, int64_t sample) {
  grads.data = static_cast<const T*>(grads.data) + sample * rows * grads.stride;
  return grads;
}

}  // namespace vae_fused
