// Sums whose bits depend on the shape alone: a thread's elements in order, lanes and warps by fixed
// trees, tiles of a row in order by the last block to finish.
//
// Nothing that is summed is negative, so every rounding is relative to the result. A thread adds at
// most a dozen elements in their own type before the sum goes on in double: an error below
// 12 * 2^-24 however long the row, without an fp64 addition per element, which a consumer GPU makes
// at 1/64 of its speed.
#pragma once

#include "cuda/launch.cuh"
#include "math/platform.h"

namespace vae_fused::cuda {

// The sum over each aligned group of 2^log_width lanes, in every lane of it.
__device__ __forceinline__ double group_sum(double x, int log_width) {
  for (int step = (1 << log_width) >> 1; step > 0; step >>= 1) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  }
  return x;
}

// The sum over the block, in thread 0. Ends with a barrier before `warps` may be used again.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[kThreads / 32];
  x = group_sum(x, 5);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
    x = 0;
    for (int w = 0; w < kThreads / 32; ++w) x += warps[w];
  }
  __syncthreads();
  return x;
}

}  // namespace vae_fused::cuda
