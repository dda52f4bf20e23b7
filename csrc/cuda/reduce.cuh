// Sums whose bits depend on the shape and the layout alone: a thread's elements in order, warps in
// order, lanes by fixed trees, tiles of a row in order by the last block to finish.
//
// Nothing that is summed is negative, so every rounding is relative to the result. A thread adds
// the elements of a step, at most 8, or 4 sums of 4, in their own type before the sum goes on in
// double: an error below 8 * 2^-24 however long the row, without an fp64 addition per element,
// which a consumer GPU makes at 1/64 of its speed.
//
// The last block of the launch adds up the tiles of long rows. Their number is bounded
// (`merge_tiles`), because one block reads them all while the rest of the GPU idles: 2048 doubles
// are 8 a thread, all on their way at a time, or some more where rows leave lanes without any.
#pragma once

#include "cuda/launch.cuh"
#include "math/platform.h"

namespace vae_fused::cuda {

// The last block reads what others wrote: eight loads under way at a time, past the L1 cache.
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

// The number of lanes, as a power of two up to a warp, that leaves each at most 8 of n elements.
__device__ __forceinline__ int log_lanes(int64_t n) {
  const int log_width = 32 - __clz(static_cast<int>((n - 1) >> 3));
  return log_width < 5 ? log_width : 5;
}

// The sum over each aligned group of 2^log_width lanes, in every lane of it.
__device__ __forceinline__ double group_sum(double x, int log_width) {
  for (int step = (1 << log_width) >> 1; step > 0; step >>= 1) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  }
  return x;
}

// The sum of one value of each thread of the block, in every lane of the warp that calls. Lane l
// adds up the values l, 32 + l, 64 + l and so on, in order; then a tree adds up the lanes.
__device__ __forceinline__ double sum_by_warp(const double (&values)[kThreads]) {
  const int lane = threadIdx.x & 31;
  double sum = values[lane];
  VAE_FUSED_UNROLL
  for (int w = 1; w < kThreads / 32; ++w) sum += values[w * 32 + lane];
  return group_sum(sum, 5);
}

// Tiles whose sums a block may hold until it has gone through all of them: 8 KB of shared memory.
constexpr int kTilesOfBlock = 4;

// The sum over the block, in the threads of the first warp. The others return at once, which takes
// 20 instructions less than a sum in each warp would. The next sum of the block needs a barrier
// first.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double values[kThreads];
  values[threadIdx.x] = x;
  __syncthreads();
  return threadIdx.x < 32 ? sum_by_warp(values) : x;
}

}  // namespace vae_fused::cuda
