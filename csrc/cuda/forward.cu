// The forward CUDA kernel: a block per tile; sample, KL and its sum in one launch.
//
// Bytes per element, float: 8 read, 4 written. The reduction adds 8 bytes for each 2048 elements.
#include "cuda/gaussians.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tickets.cuh"

namespace vae_fused::cuda {
namespace {

// Rows of several tiles: their partial sums, in order. Few rows: a block for each, else as many
// lanes as a row has use for.
template <typename T>
__device__ void combine(const ForwardParams& p) {
  const int64_t per_row = p.space.tiles_per_row;
  T* const kl = static_cast<T*>(p.kl);
  const bool by_block = p.space.rows < kThreads / 32;
  const int log_width = by_block ? 8 : log_lanes(per_row), width = 1 << log_width;
  const int lane = threadIdx.x & (width - 1);
  // Every lane takes part in the shuffles, with or without a row.
  for (int64_t first = 0; first < p.space.rows; first += kThreads >> log_width) {
    const int64_t row = first + (threadIdx.x >> log_width);
    const bool has_row = row < p.space.rows;
    double sum = sum_parts(p.partials + row * per_row, has_row ? per_row : 0, lane, width);
    sum = by_block ? block_sum(sum) : group_sum(sum, log_width);
    if (has_row && lane == 0) kl[row] = static_cast<T>(p.kl_scale * sum);
  }
}

// Whole rows of a tile, staged in shared memory.
template <typename T>
__device__ __forceinline__ void sum_rows(const ForwardParams& p, const Tile& tile,
                                         const T* staged) {
  constexpr int kRun = 8;
  T* const kl = static_cast<T*>(p.kl) + tile.row;
  const int cols = static_cast<int>(p.space.cols);
  const int log_width = log_lanes(cols), width = 1 << log_width;
  const int lane = threadIdx.x & (width - 1);
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

// What becomes of the elements' KL.
enum class Rows {
  kNone,      // no KL is asked for
  kElements,  // reduction="none": written as they are
  kInTile,    // a tile holds whole rows
  kOfTiles,   // a row consists of tiles
};

Rows rows_of(const ForwardParams& p) {
  if (!p.kl) return Rows::kNone;
  if (p.space.cols == 1) return Rows::kElements;
  return p.space.tiles_per_row == 1 ? Rows::kInTile : Rows::kOfTiles;
}

// Whether the keys of Philox's rounds are kept: see Stream. Where not, some kernel would spill.
template <typename S, Access kAccess, class F>
constexpr bool kKeepsKeys =
    !kGeneral<F> && (kAccess == Access::kLinear || (kAccess == Access::kStrided && sizeof(S) > 2));

// One tile: its sample, and its elements' KL where they belong; those of Rows::kOfTiles are
// returned, summed over the thread's.
template <typename S, Access kAccess, bool kWhole, class F>
__device__ __forceinline__ double forward_tile(const ForwardParams& p, const F& f,
                                               const Stream<kKeepsKeys<S, kAccess, F>>& stream,
                                               const Tile& tile, Rows rows,
                                               Pack<arithmetic_t<S>, kChunk<S, kAccess>>* staged) {
  using T = arithmetic_t<S>;
  constexpr bool kUsual = kAccess == Access::kLinear;
  constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  constexpr int kZ = kGaussianSlots<F>, kOffsets = kZ + 1;
  const bool sampled = kUsual || p.z.data, given = !kUsual && p.eps.data;
  const bool wants_kl = kUsual || rows != Rows::kNone;
  double sum = 0;
  for (auto span = first_span<N, kWhole>(tile); span.slot < span.end; span = span + kThreads * N) {
    const int64_t* strides[kOffsets];
    gaussian_strides<F>(p, strides);
    strides[kZ] = p.z.stride;
    int64_t at[kOffsets];
    locate<kAccess>(p.space, strides, span.e, at);
    GaussianStep<S, kAccess, F> step;
    step.load(p.space, p.of, at, span, true, wants_kl);
    Pack<S, N> eps_pack;
    T of_step = 0;
    if (given) eps_pack = load<S, kAccess, kGeneral<F>>(p.space, p.eps, at[kEps], span);
    VAE_FUSED_UNROLL
    for (int b = 0; b < N / C; ++b) {
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      step.compute(p.of, f, b, wants_kl, q, prior);
      if (sampled) {
        const int64_t first = at[kNoise] + b * chunk_stride<S, kAccess>(p.space);
        T z[C];
        if (given) {
          widen<kAccess, C>(eps_pack, b, z);
        } else {
          stream.template normals<S>(first, z);
        }
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          z[j] = math::sample(f, q[j].mu, q[j].scale.sigma, z[j]);
          if (kGeneral<F> && !step.counts(p.of, span, b, j)) z[j] = 0;
        }
        narrow<kAccess, C>(z, b, step.mu);  // in place: registers are scarce
        for (int64_t s = 1; kGeneral<F> && s < p.of.samples; ++s) {
          Pack<S, C> further;
          if (given) {
            further = load_chunk<S, kAccess>(p.space, p.eps, at[kEps], s, b, span);
            widen<kAccess, C>(further, 0, z);
          } else {
            stream.template normals<S>(first + s * (p.space.rows * p.space.cols), z);
          }
          VAE_FUSED_UNROLL
          for (int j = 0; j < C; ++j) {
            z[j] = math::sample(f, q[j].mu, q[j].scale.sigma, z[j]);
            if (!step.counts(p.of, span, b, j)) z[j] = 0;
          }
          narrow<kAccess, C>(z, 0, further);
          store_chunk<S, kAccess>(p.z, at[kZ], s, b, span, further);
        }
      }
      Pack<T, C> kl;
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        kl.s[j] = math::twice_kl(f, f.linear, math::relative(f, q[j], prior[j]));
        if (kGeneral<F> && !step.counts(p.of, span, b, j)) kl.s[j] = 0;
      }
      if (rows == Rows::kOfTiles) {  // the usual ones first
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) of_step += kl.s[j];
      } else if (rows == Rows::kInTile) {
        staged[span.slot / C + b] = kl;
      } else if (rows == Rows::kElements) {
        const T scale = static_cast<T>(p.kl_scale);
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) kl.s[j] *= scale;
        store_vector<T, C>(static_cast<T*>(p.kl) + span.e + b * C, span + b * C, kl);
      }
    }
    if (sampled) store<S, kAccess>(p.space, p.z, at[kZ], span, step.mu);
    sum += static_cast<double>(of_step);
  }
  return sum;
}

template <typename S, Access kAccess, class F>
__global__ void __launch_bounds__(kThreads, kBlocks<S, kAccess, F>)
    forward_kernel(const __grid_constant__ ForwardParams p, const __grid_constant__ F f,
                   const __grid_constant__ Rows rows, int ticket) {
  using T = arithmetic_t<S>;
  constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  __shared__ Pack<T, C> staged[(kTile + 2 * N) / C];
  const Key key = resolve(p.key);
  write_key(key, p.key_out);
  const Stream<kKeepsKeys<S, kAccess, F>> stream(key);
  Tile tile{};
  double sum = 0;
  // Tiles of whole rows use the shared memory one after the other; of others a block has one.
  for (int64_t t = blockIdx.x; t < p.space.tiles; t += gridDim.x) {
    tile = tile_at(p.space, t);
    if (kHasWhole<S, kAccess> && is_whole<N>(tile)) {
      sum = forward_tile<S, kAccess, true>(p, f, stream, tile, rows, staged);
    } else {
      sum = forward_tile<S, kAccess, false>(p, f, stream, tile, rows, staged);
    }
    if (rows != Rows::kInTile) break;
    __syncthreads();
    sum_rows(p, tile, reinterpret_cast<const T*>(staged) + (tile.begin & (N - 1)));
    __syncthreads();
  }
  if (rows != Rows::kOfTiles) return;
  sum = block_sum(sum);
  if (p.space.tiles_per_row == 1) {
    if (threadIdx.x == 0) static_cast<T*>(p.kl)[tile.row] = static_cast<T>(p.kl_scale * sum);
    return;
  }
  if (threadIdx.x == 0) p.partials[blockIdx.x] = sum;
  if (ticket != kNoTicket && last_block(ticket)) combine<T>(p);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ ForwardParams p) {
  combine<T>(p);
}

template <typename S>
cudaError_t forward_as(ForwardParams p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  int ticket = kNoTicket;
  const Rows rows = rows_of(p);
  p.kl_scale *= 0.5;  // elements give twice their KL
  const int64_t blocks = merge_tiles(p.space, rows == Rows::kInTile);
  const bool combines = p.kl && p.space.tiles_per_row > 1;
  if (combines) {
    const cudaError_t error = ticket_slot(stream, &ticket);
    if (error != cudaSuccess) return error;
  }
  const Way way = way_of<S>(
      p.space, p.of, {{&p.eps, sizeof(S), false, p.eps.step}, {&p.z, sizeof(S), true, p.z.step}},
      p.kl, p.z.data && p.kl && !p.eps.data, p.z.data && !p.eps.data);
  const cudaError_t error = with_kernels<S>(way, p.of.family, [&](auto access, const auto& family) {
    using F = std::decay_t<decltype(family)>;
    return launch(forward_kernel<S, decltype(access)::value, F>, blocks, stream, p, family, rows,
                  ticket);
  });
  if (error != cudaSuccess || !combines || ticket != kNoTicket) return error;
  return launch(combine_kernel<T>, 1, stream, p);
}

}  // namespace

int forward(const ForwardParams& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return forward_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace vae_fused::cuda
