// Adds, in order, the partial sums of each row that consists of several tiles.
#pragma once

#include "iteration/rows.h"
#include "iteration/space.h"

namespace vae_fused::cpu {

template <typename T>
void combine_as(const Space& space, const RowSums& sums) {
  for (int64_t row = 0; row < space.rows; ++row) {
    double total = 0;
    for (int64_t t = 0; t < space.tiles_per_row; ++t) {
      total += sums.partials[row * space.tiles_per_row + t];
    }
    static_cast<T*>(sums.data)[row] = static_cast<T>(sums.factor * total);
  }
}

// Does nothing if the tiles have already written the row sums.
inline void combine(DType dtype, const Space& space, const RowSums& sums) {
  if (!sums.data || !sums.partials) return;
  dtype == DType::kFloat64 ? combine_as<double>(space, sums) : combine_as<float>(space, sums);
}

}  // namespace vae_fused::cpu
