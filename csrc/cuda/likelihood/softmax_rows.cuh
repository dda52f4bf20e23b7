// Computes a softmax over rows of logits in one launch: the maximum of each row, and the shift to
// add to its logits after the maximum is subtracted. A warp computes a row of up to 512 elements. A
// longer row is computed by one or several thread blocks, and the last block of the launch combines
// their maxima and sums.
#pragma once

#include "cuda/likelihood/piece.cuh"
#include "cuda/row_kernel.cuh"
#include "math/elementary.h"
#include "params/likelihood.h"

namespace vae_fused::cuda {
namespace {

constexpr int kColumnsOfWarp = 512;

// The sum of exp(x - origin) over some elements. The origin is the largest of these elements, or 0
// if the largest is -inf, so that masked elements do not become NaN.
template <typename T>
struct ExpSum {
  T largest = -math::kInfinity<T>;
  double sum = 0;

  static __device__ __forceinline__ T origin_of(T largest) {
    return largest == -math::kInfinity<T> ? T(0) : largest;
  }
  __device__ __forceinline__ T origin() const { return origin_of(largest); }

  // Changes the origin of the sum. An empty sum is 0 for any origin, so it is not scaled.
  __device__ __forceinline__ void raise(T to) {
    if (to == largest) return;
    const T old = largest;
    largest = to;
    if (old != -math::kInfinity<T>) sum *= static_cast<double>(math::exp(old - to));
  }

  template <int N>
  __device__ __forceinline__ void add(const T (&x)[N]) {
    T most = largest;
    VAE_FUSED_UNROLL
    for (int j = 0; j < N; ++j) most = math::larger(x[j], most);  // a NaN reaches the sum below
    raise(most);
    T added = 0;
    VAE_FUSED_UNROLL
    for (int j = 0; j < N; ++j) added += math::exp(x[j] - origin());
    sum += static_cast<double>(added);
  }

  __device__ __forceinline__ void add(ExpSum other) {
    const T most = math::larger(other.largest, largest);
    raise(most);
    other.raise(most);
    sum += other.sum;
  }
};

template <typename T>
__device__ __forceinline__ ExpSum<T> warp_total(ExpSum<T> x) {
#pragma unroll 1
  for (int step = 16; step > 0; step >>= 1) {
    ExpSum<T> other;
    other.largest = __shfl_xor_sync(0xFFFFFFFFu, x.largest, step);
    other.sum = __shfl_xor_sync(0xFFFFFFFFu, x.sum, step);
    x.add(other);
  }
  return x;
}

// Returns the sum of the thread block in its first warp, where x is the sum of the calling thread's
// warp. The block needs a barrier before it computes another sum.
template <typename T>
__device__ __forceinline__ ExpSum<T> block_total(ExpSum<T> x) {
  constexpr int kWarps = kThreads / 32;
  __shared__ T largest[kWarps];
  __shared__ double sum[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) {
    largest[warp] = x.largest;
    sum[warp] = x.sum;
  }
  __syncthreads();
  if (warp != 0) return x;
  ExpSum<T> warp_sum;
  if (lane < kWarps) {
    warp_sum.largest = largest[lane];
    warp_sum.sum = sum[lane];
  }
  return warp_total(warp_sum);
}

template <typename T>
__device__ __forceinline__ void write_row(const SoftmaxParams& p, int64_t row, double largest,
                                          double sum) {
  const double library =
      p.library ? static_cast<double>(static_cast<const T*>(p.library)[row]) : 0.0;
  static_cast<T*>(p.row_max)[row] = static_cast<T>(largest);
  static_cast<T*>(p.row_shift)[row] = static_cast<T>(library - math::log_libm(sum));
}

// Sums every `width`th element of a tile, starting with element `lane`. A row extends along one
// dimension of its tensors.
template <typename S>
__device__ __forceinline__ ExpSum<arithmetic_t<S>> sum_of(const SoftmaxParams& p, const Tile& tile,
                                                          int lane, int width) {
  using T = arithmetic_t<S>;
  constexpr int kLoads = 4;
  const int64_t* const strides[] = {p.logits.stride, p.mask.stride};
  int64_t at[2];
  find_offsets(p.space, strides, tile.begin, at);
  const int inner = p.space.ndim - 1;
  const int64_t stride = p.logits.stride[inner], mask_stride = p.mask.stride[inner];
  const S* const logits = static_cast<const S*>(p.logits.data) + at[0];
  const uint8_t* const mask = static_cast<const uint8_t*>(p.mask.data) + at[1];
  const bool has_mask = p.mask.data;
  ExpSum<T> result;
#pragma unroll 1
  for (int begin = lane; begin < tile.n; begin += kLoads * width) {
    T x[kLoads];
    VAE_FUSED_UNROLL
    for (int j = 0; j < kLoads; ++j) {
      const int i = begin + j * width;
      x[j] = -math::kInfinity<T>;
      if (i < tile.n && (!has_mask || mask[i * mask_stride])) {
        x[j] = math::widen(logits[i * stride]);
      }
    }
    result.add(x);
  }
  return result;
}

template <typename T>
__device__ void combine_softmax(const SoftmaxParams& p) {
  for (int64_t row = threadIdx.x; row < p.space.rows; row += kThreads) {
    const double* const parts = p.partials + 2 * row * p.space.tiles_per_row;
    const int64_t n = 2 * p.space.tiles_per_row;
    double largest = __ldcg(parts), sum = 0;
    for (int64_t k = 2; k < n; k += 2) largest = math::larger(__ldcg(parts + k), largest);
    for (int64_t k = 0; k < n; k += 2) {
      sum += math::exp_libm(__ldcg(parts + k) - largest) * __ldcg(parts + k + 1);
    }
    write_row<T>(p, row, largest, sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_softmax_kernel(const __grid_constant__ SoftmaxParams p) {
  combine_softmax<T>(p);
}

template <typename S>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 2 : 4)
    softmax_rows_kernel(const __grid_constant__ SoftmaxParams p, int ticket) {
  using T = arithmetic_t<S>;
  const bool by_warp = p.space.cols <= kColumnsOfWarp;
  const int width = by_warp ? 32 : kThreads, lane = threadIdx.x & (width - 1);
  const int64_t units = by_warp ? p.space.rows : p.space.tiles;
  // Every lane must take part in the shuffles, even if it has no row.
  for (int64_t first = int64_t{blockIdx.x} * (kThreads / width); first < units;
       first += int64_t{gridDim.x} * (kThreads / width)) {
    const int64_t t = first + threadIdx.x / width;
    const bool has_unit = t < units;
    Tile tile{0, 0, 0, 0};
    if (has_unit) tile = tile_of(p.space, t);
    ExpSum<T> sum = warp_total(sum_of<S>(p, tile, lane, width));
    if (!by_warp) sum = block_total(sum);
    if (has_unit && lane == 0) {
      if (p.space.tiles_per_row == 1) {
        write_row<T>(p, tile.row, sum.origin(), sum.sum);
      } else {
        p.partials[2 * t] = static_cast<double>(sum.origin());
        p.partials[2 * t + 1] = sum.sum;
      }
    }
    if (!by_warp) __syncthreads();
  }
  if (ticket != kNoTicket && last_block(ticket)) combine_softmax<T>(p);
}

template <typename S>
cudaError_t softmax_rows_as(SoftmaxParams p, cudaStream_t stream) {
  Space& space = p.space;
  if (space.tiles_per_row > 1) {
    merge_tiles(space);
  } else {
    space.rows_per_tile = 1;
    space.tiles = space.rows;
  }
  constexpr int kWarps = kThreads / 32;
  const int64_t units = space.cols <= kColumnsOfWarp ? (space.rows - 1) / kWarps + 1 : space.tiles;
  const int64_t blocks =
      space.tiles_per_row > 1 ? space.tiles : (units - 1) / tiles_to_merge(units) + 1;
  int ticket = kNoTicket;
  if (space.tiles_per_row > 1) {
    const cudaError_t error = ticket_slot(stream, &ticket);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error = launch(softmax_rows_kernel<S>, blocks, stream, p, ticket);
  if (error != cudaSuccess || space.tiles_per_row == 1 || ticket != kNoTicket) return error;
  return launch(combine_softmax_kernel<arithmetic_t<S>>, 1, stream, p);
}

}  // namespace
}  // namespace vae_fused::cuda
