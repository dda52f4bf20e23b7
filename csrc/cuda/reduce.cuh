// Sums whose bits depend only on the shape and the layout. A thread adds its elements in order, and
// a lane then adds the values of all warps in order. Fixed trees add the lanes, and the last thread
// block adds the tiles of a row in order.
//
// The terms of the closed-form KL are not negative, so each rounding error is relative to the
// result. For terms of either sign, each rounding error is relative to the sum of their absolute
// values. In the terms' own type, a thread adds only the elements of a step, at most 8, or 4 sums
// of 4 elements. It then continues in double. The error stays below 8 * 2^-24 for rows of any
// length. An fp64 addition per element would be slow, because a consumer GPU adds doubles at 1/64
// of its fp32 speed.
//
// The last block of the launch adds up the tiles of long rows. `merge_tiles` bounds the number of
// tiles, because one block reads their sums while the rest of the GPU is idle. Of 2048 doubles,
// each thread reads 8, and its 8 loads are in flight together. A thread reads more if rows leave
// lanes idle.
#pragma once

#include "cuda/launch.cuh"
#include "math/platform.h"

namespace vae_fused::cuda {

// Adds up the partial sums that other thread blocks wrote. Eight loads are in flight at a time, and
// all loads bypass the L1 cache.
__device__ __forceinline__ double sum_parts(const double* parts, int64_t n, int lane, int width) {
  constexpr int kLoads = 8;
  double sum = 0;
  for (int64_t begin = lane; begin < n; begin += kLoads * width) {
    double values[kLoads];
    VAE_FUSED_UNROLL
    for (int j = 0; j < kLoads; ++j) {
      const int64_t at = begin + j * width;
      values[j] = at < n ? __ldcg(parts + at) : 0.0;
    }
    VAE_FUSED_UNROLL
    for (int j = 0; j < kLoads; ++j) sum += values[j];
  }
  return sum;
}

// Returns the binary logarithm of the number of lanes to use for n elements. The number is the
// smallest power of two that leaves each lane at most 8 elements, but at most the 32 lanes of a
// warp.
__device__ __forceinline__ int log_lanes(int64_t n) {
  const int log_width = 32 - __clz(static_cast<int>((n - 1) >> 3));
  return log_width < 5 ? log_width : 5;
}

// Returns, in every lane, the sum over its aligned group of 2^log_width lanes.
__device__ __forceinline__ double group_sum(double x, int log_width) {
  for (int step = (1 << log_width) >> 1; step > 0; step >>= 1) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  }
  return x;
}

// Adds up one value from each thread of the block, and returns the sum in every lane of the calling
// warp. Lane l adds up values l, 32 + l, 64 + l and so on, in order. Then a tree adds up the lanes.
__device__ __forceinline__ double sum_by_warp(const double (&values)[kThreads]) {
  const int lane = threadIdx.x & 31;
  double sum = values[lane];
  VAE_FUSED_UNROLL
  for (int w = 1; w < kThreads / 32; ++w) sum += values[w * 32 + lane];
  return group_sum(sum, 5);
}

// The maximum number of tiles that a thread block computes before it adds up their sums. The sums
// take 8 KB of shared memory.
constexpr int kTilesOfBlock = 4;

// Returns the sum over the thread block in the threads of the first warp. The other threads return
// their own x, which takes 20 fewer instructions than computing the sum in each warp. The block
// needs a barrier before its next sum.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double values[kThreads];
  values[threadIdx.x] = x;
  __syncthreads();
  return threadIdx.x < 32 ? sum_by_warp(values) : x;
}

}  // namespace vae_fused::cuda
