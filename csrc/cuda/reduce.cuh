// Sums whose bits depend on the shape alone: a thread's elements in order, lanes and warps by fixed
// trees, tiles of a row in order by the last block to finish.
#pragma once

#include "cuda/launch.cuh"
#include "math/platform.h"

namespace vae_fused::cuda {

// A float sum with its rounding errors kept (Knuth's two-sum): as good as double, without fp64
// units, of which consumer GPUs have 1 in 64.
template <typename T>
struct Sum {
  T value = 0, error = 0;

  __device__ __forceinline__ void add(T x) {
    const T next = value + x;
    const T part = next - value;
    error += (value - (next - part)) + (x - part);
    value = next;
  }
  __device__ __forceinline__ double total() const {
    return static_cast<double>(value) + static_cast<double>(error);
  }
};

// inf and nan leave garbage in `error` (inf - inf); then the plain sum is the answer.
template <typename T>
__device__ __forceinline__ double total(const Sum<T>& sum) {
  const double exact = sum.total();
  return exact == exact ? exact : static_cast<double>(sum.value);
}

// The sum over each aligned group of `width` lanes (a power of two up to 32), in every lane of it.
__device__ __forceinline__ double group_sum(double x, int width) {
  for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  return x;
}

// The sum over the block, in thread 0. Ends with a barrier before `warps` may be used again.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[kThreads / 32];
  x = group_sum(x, 32);
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
