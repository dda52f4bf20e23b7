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
  const int lane = threadIdx.x & (width - 1);
  for (int64_t row = by_warp ? threadIdx.x / 32 : 0; row < p.space.rows; row += kThreads / width) {
    double sum = 0;
    for (int64_t t = lane; t < tiles; t += width) sum += __ldcg(&p.partials[row * tiles + t]);
    sum = by_warp ? group_sum(sum, 5) : block_sum(sum);
    if (lane == 0) kl[row] = static_cast<T>(p.kl_scale * sum);
  }
}

// Whole rows of a tile, staged in shared memory: 2^log_width lanes a row, at least one for each 8
// columns while there are.
template <typename T>
__device__ __forceinline__ void sum_rows(const ForwardParams& p, const Tile& tile,
                                         const T* staged) {
  constexpr int kRun = 8;
  T* const kl = static_cast<T*>(p.kl) + tile.row;
  const int cols = static_cast<int>(p.space.cols);
  int log_width = 0;
  while (log_width < 5 && kRun << log_width < cols) ++log_width;
  const int width = 1 << log_width, lane = threadIdx.x & (width - 1);
  // Every lane takes part in the shuffles, with or without a row.
  for (int first = 0; first < tile.rows; first += kThreads >> log_width) {
    const int row = first + (threadIdx.x >> log_width);
    double sum = 0;
    if (row < tile.rows) {
      const T* const values = staged + row * cols;
      for (int begin = lane; begin < cols; begin += kRun * width) {
        T run = 0;
        VAE_FUSED_UNROLL
        for (int j = 0; j < kRun; ++j) {
          const int c = begin + j * width;
          if (c < cols) run += values[c];
        }
        sum += static_cast<double>(run);
      }
    }
    sum = group_sum(sum, log_width);
    if (row < tile.rows && lane == 0) kl[row] = static_cast<T>(p.kl_scale * sum);
  }
}

// What becomes of the elements' KL. The same for all blocks of a launch.
enum class Rows {
  kNone,      // no KL is asked for
  kElements,  // reduction="none": written as they are
  kInTile,    // a tile holds whole rows
  kOfTiles,   // a row consists of tiles
};

__device__ __forceinline__ Rows rows_of(const ForwardParams& p) {
  if (!p.kl) return Rows::kNone;
  if (p.space.cols == 1) return Rows::kElements;
  return p.space.tiles_per_row == 1 ? Rows::kInTile : Rows::kOfTiles;
}

template <typename S, Access kAccess>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    forward_kernel(const __grid_constant__ ForwardParams p, int ticket) {
  using T = arithmetic_t<S>;
  constexpr bool kUsual = kAccess == Access::kLinear;
  constexpr int V = kVector<S, kAccess>, C = kChunk<T, V>;
  using Values = Pack<T, C>;
  __shared__ Values staged[(kTile + 2 * V) / C];
  const Key key = resolve(p.key);
  const Tile tile = tile_at(p.space, blockIdx.x);
  const Rows rows = rows_of(p);
  const bool sampled = kUsual || p.z.data;
  T sum = 0;
  Span span = first_span<V>(tile);
  for (; span.slot < span.end; span = span + kThreads * V) {
    const int64_t* const strides[] = {p.mu.stride, p.logvar.stride, p.z.stride, p.eps.stride,
                                      p.space.noise_stride};
    int64_t at[5];
    locate<kAccess>(p.space, strides, span.e, at);
    auto mu_pack = load<S, V>(static_cast<const S*>(p.mu.data) + at[0], span);
    const auto x_pack = load<S, V>(static_cast<const S*>(p.logvar.data) + at[1], span);
    Pack<S, V> eps_pack;
    const bool given = !kUsual && p.eps.data;
    if (given) eps_pack = load<S, V>(static_cast<const S*>(p.eps.data) + at[3], span);
    VAE_FUSED_UNROLL
    for (int b = 0; b < V / C; ++b) {
      T mu[C], x[C], sigma[C], variance[C];
      widen<C>(mu_pack, b, mu);
      widen<C>(x_pack, b, x);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        const math::Scale<T> scale = math::scale_of(x[j]);
        sigma[j] = scale.sigma;
        variance[j] = scale.variance;
      }
      if (sampled) {
        T z[C];
        if (given) {
          widen<C>(eps_pack, b, z);
        } else {
          normals(key, at[4] + b * C, z);
        }
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) z[j] = math::sample(mu[j], sigma[j], z[j]);
        narrow<C>(z, b, mu_pack);  // in place: registers are scarce
      }
      // Elements beyond the tile were loaded as 0, and so is their KL.
      Values kl;
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) kl.s[j] = math::kl(mu[j], x[j], variance[j]);
      switch (rows) {
        case Rows::kNone:
          break;
        case Rows::kElements: {
          const Span part = span + b * C;
          const T scale = static_cast<T>(p.kl_scale);
          VAE_FUSED_UNROLL
          for (int j = 0; j < C; ++j) kl.s[j] *= scale;
          store<T, C>(static_cast<T*>(p.kl) + part.e, part, kl);
          break;
        }
        case Rows::kInTile:
          staged[span.slot / C + b] = kl;
          break;
        case Rows::kOfTiles:
          VAE_FUSED_UNROLL
          for (int j = 0; j < C; ++j) sum += kl.s[j];
      }
    }
    if (sampled) store<S, V>(static_cast<S*>(p.z.data) + at[2], span, mu_pack);
  }
  if (p.key_out && blockIdx.x == 0 && threadIdx.x == 0) {
    p.key_out[0] = key.seed;
    p.key_out[1] = key.offset;
  }
  if (rows == Rows::kInTile) {
    __syncthreads();
    sum_rows(p, tile, staged[0].s + span.begin);
  } else if (rows == Rows::kOfTiles) {
    const double partial = block_sum(static_cast<double>(sum));
    if (threadIdx.x == 0) p.partials[blockIdx.x] = partial;
    if (ticket != kNoTicket && last_block(ticket)) combine<T>(p);
  }
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
  const bool usual = p.z.data && p.kl && !p.eps.data;
  const auto kernel = [&] {
    switch (access_of(p.space, {&p.mu, &p.logvar, &p.eps, &p.z}, p.kl, usual,
                      p.z.data && !p.eps.data, kVector<S, Access::kStrided>)) {
      case Access::kLinear:
        return forward_kernel<S, Access::kLinear>;
      case Access::kStrided:
        return forward_kernel<S, Access::kStrided>;
      default:
        return forward_kernel<S, Access::kScalar>;
    }
  }();
  const cudaError_t error = launch(kernel, p.space.tiles, stream, p, ticket);
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
