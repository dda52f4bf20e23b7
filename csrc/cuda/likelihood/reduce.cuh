// Sums over lanes, over a thread block, and over the partial sums of blocks, all in a fixed order.
#pragma once

#include "cuda/launch.cuh"
#include "iteration/rows.h"

namespace vae_fused::cuda {

// Returns, in every lane, the sum over its aligned group of 2^log_width lanes. The loop is not
// unrolled, because unrolled sums of doubles made up a tenth of the machine code.
__device__ __forceinline__ double sum_of_lanes(double x, int log_width) {
#pragma unroll 1
  for (int step = (1 << log_width) >> 1; step > 0; step >>= 1) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  }
  return x;
}

// Returns the sum over the thread block in its first thread. The function ends with a barrier.
__device__ __forceinline__ double sum_of_block(double x) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double warp_sums[kWarps];
  x = sum_of_lanes(x, 5);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int w = 1; w < kWarps; ++w) x += warp_sums[w];
  }
  __syncthreads();
  return x;
}

// Combines the partial sums of rows that have several parts, in a fixed order. One warp works on
// each row, or the whole block if there are few rows.
template <typename T>
__device__ __forceinline__ void combine_parts(int64_t rows, int64_t per_row, const RowSums& sums) {
  const bool by_block = rows < kThreads / 32;
  const int width = by_block ? kThreads : 32, lane = threadIdx.x & (width - 1);
  for (int64_t row = threadIdx.x / width; row < rows; row += kThreads / width) {
    const double* const parts = sums.partials + row * per_row;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = lane; i < per_row; i += width) sum += __ldcg(parts + i);
    sum = by_block ? sum_of_block(sum) : sum_of_lanes(sum, 5);
    if (lane == 0) static_cast<T*>(sums.data)[row] = static_cast<T>(sums.factor * sum);
  }
}

}  // namespace vae_fused::cuda
