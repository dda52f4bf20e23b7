// The forward CUDA kernel: a block per tile; sample, KL and its sum in one launch.
//
// Bytes per element, float: 8 read, 4 written. The reduction adds 8 bytes for each 2048 elements.
#include "cuda/reduce.cuh"
#include "cuda/tickets.cuh"
#include "cuda/tile.cuh"
#include "math/gaussian.h"

namespace vae_fused::cuda {
namespace {

constexpr int kNoTicket = -1;

// Rows of several tiles: their partial sums, in order. Few rows: a block for each, else a warp.
template <typename T>
__device__ void combine(const ForwardParams& p) {
  T* const kl = static_cast<T*>(p.kl);
  const int64_t tiles = p.space.tiles_per_row;
  const bool by_warp = p.space.rows >= kThreads / 32;
  const int width = by_warp ? 32 : kThreads;
  for (int64_t row = threadIdx.x / width; row < p.space.rows; row += kThreads / width) {
    double sum = 0;
    for (int64_t t = threadIdx.x % width; t < tiles; t += width) {
      sum += __ldcg(&p.partials[row * tiles + t]);
    }
    sum = by_warp ? group_sum(sum, 32) : block_sum(sum);
    if (threadIdx.x % width == 0) kl[row] = static_cast<T>(p.kl_scale * sum);
  }
}

// Whole rows in a tile: their elements' KL, staged in shared memory, summed by `width` lanes a row.
template <typename T>
__device__ __forceinline__ void sum_rows(const ForwardParams& p, const Tile& tile,
                                         const T* staged) {
  T* const kl = static_cast<T*>(p.kl) + tile.row;
  const int cols = static_cast<int>(p.space.cols);
  int width = 1;
  while (width < 32 && width * 8 < cols) width *= 2;
  const int lane = threadIdx.x % width;
  // Every lane takes part in the shuffles, with or without a row.
  for (int first = 0; first < tile.rows; first += kThreads / width) {
    const int row = first + threadIdx.x / width;
    Sum<T> sum;
    if (row < tile.rows) {
      for (int c = lane; c < cols; c += width) sum.add(staged[row * cols + c]);
    }
    const double result = group_sum(total(sum), width);
    if (row < tile.rows && lane == 0) kl[row] = static_cast<T>(p.kl_scale * result);
  }
}

template <typename S, int V>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ ForwardParams p, int ticket) {
  using T = arithmetic_t<S>;
  __shared__ T staged[kTile];
  const Key key = resolve(p.key);
  const Tile tile = tile_at(p.space, blockIdx.x);
  const bool whole_rows = p.space.tiles_per_row == 1;
  Sum<T> sum;
  for (int at = threadIdx.x * V; at < tile.n; at += kThreads * V) {
    const int64_t e = tile.begin + at;
    const int n = tile.n - at < V ? tile.n - at : V;
    T mu[V], x[V], sigma[V], variance[V], eps[V];
    load<V, S>(p.space, p.mu, e, n, mu);
    load<V, S>(p.space, p.logvar, e, n, x);
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) {
      const math::Scale<T> scale = math::scale_of(x[j]);
      sigma[j] = scale.sigma;
      variance[j] = scale.variance;
    }
    if (p.z.data) {
      load_noise<V, S>(p.space, p.eps, key, e, n, eps);
      VAE_FUSED_UNROLL
      for (int j = 0; j < V; ++j) eps[j] = math::sample(mu[j], sigma[j], eps[j]);
      store<V, S>(p.space, p.z, e, n, eps);
    }
    if (p.kl) {
      VAE_FUSED_UNROLL
      for (int j = 0; j < V; ++j) {
        // Elements beyond n are 0, and so is their KL.
        const T kl = math::kl(mu[j], x[j], variance[j]);
        if (!whole_rows) {
          sum.add(kl);
        } else if (j < n) {
          staged[at + j] = kl;
        }
      }
    }
  }
  if (p.key_out && blockIdx.x == 0 && threadIdx.x == 0) {
    p.key_out[0] = key.seed;
    p.key_out[1] = key.offset;
  }
  if (!p.kl) return;
  if (whole_rows) {
    __syncthreads();
    return sum_rows(p, tile, staged);
  }
  const double partial = block_sum(total(sum));
  if (threadIdx.x == 0) p.partials[blockIdx.x] = partial;
  if (ticket != kNoTicket && last_block(ticket)) combine<T>(p);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ ForwardParams p) {
  combine<T>(p);
}

template <typename S>
cudaError_t forward_as(const ForwardParams& p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  int ticket = kNoTicket;
  const bool combines = p.kl && p.space.tiles_per_row > 1;
  if (combines) {
    const cudaError_t error = ticket_slot(stream, &ticket);
    if (error != cudaSuccess) return error;
  }
  constexpr int v = kVector<S>;
  const int size = sizeof(S);
  const bool vector = space_vectorises(p.space, p.z.data && !p.eps.data, v) &&
                      vectorises(p.space, p.mu, v, size) &&
                      vectorises(p.space, p.logvar, v, size) &&
                      vectorises(p.space, p.eps, v, size) && vectorises(p.space, p.z, v, size);
  const cudaError_t error = launch(vector ? forward_kernel<S, v> : forward_kernel<S, 1>,
                                   p.space.tiles, stream, p, ticket);
  if (error != cudaSuccess || !combines || ticket != kNoTicket) return error;
  return launch(combine_kernel<T>, 1, stream, p);
}

}  // namespace

int forward(const ForwardParams& params, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (params.dtype) {
    case DType::kFloat32:
      return forward_as<float>(params, stream);
    case DType::kFloat64:
      return forward_as<double>(params, stream);
    case DType::kFloat16:
      return forward_as<math::Half>(params, stream);
    default:
      return forward_as<math::BFloat16>(params, stream);
  }
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace vae_fused::cuda
