// The forward CUDA kernel: sample, KL and its sum in one launch. A block has one or more tiles.
//
// Bytes per element, float: 8 read, 4 written. The reduction adds 8 bytes for each 2048 elements.
#include "cuda/gaussians.cuh"
#include "cuda/rows.cuh"
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
    if (by_block) __syncthreads();
  }
}

// What becomes of the elements' KL.
enum class Rows {
  kNone,     // no KL is asked for
  kDirect,   // a chunk holds whole rows: they are written at once
  kStaged,   // a tile holds whole rows: see rows.cuh
  kOfTiles,  // a row consists of tiles
};

// Of the space as it was made: merged, a long row may be one tile.
Rows rows_of(const ForwardParams& p, int chunk) {
  if (!p.kl) return Rows::kNone;
  if (chunk % p.space.cols == 0) return Rows::kDirect;
  return p.space.tiles_per_row == 1 ? Rows::kStaged : Rows::kOfTiles;
}

// How many tiles a block goes through, one after the other. Where rows consist of tiles it has two
// or more, down to half of the blocks that fill any GPU: the end of a block, with its barriers and
// its ticket, takes as long as two or three steps of 16-bit elements, and a tile has four of these
// at 2^24 elements.
int64_t tiles_of_block(Rows rows, int64_t tiles) {
  if (rows == Rows::kStaged) return tiles_to_merge(tiles);
  if (rows != Rows::kOfTiles) return 1;
  return std::clamp<int64_t>(2 * tiles / VAE_FUSED_ENOUGH_BLOCKS, 1, kTilesOfBlock);
}

// A step: loaded, then computed and stored. `kUsual`: of a usual tile.
template <typename S, Access kAccess, class F, bool kUsual>
class ForwardStep {
  using T = arithmetic_t<S>;
  static constexpr bool kComplete = kUsual || kAccess == Access::kLinear;
  static constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  static constexpr int kZ = kGaussianSlots<F>, kOffsets = kZ + 1;

 public:
  template <bool kWhole>
  __device__ __forceinline__ void load(const ForwardParams& p, bool wants_kl,
                                       const Span<kWhole>& span) {
    const int64_t* strides[kOffsets];
    gaussian_strides<F>(p, strides);
    strides[kZ] = p.z.stride;
    locate<S, kAccess, kUsual>(p.space, strides, span.e(), at_);
    gaussians_.load(p.space, p.of, at_, span, true, wants_kl);
    if (given(p)) {
      cuda::load<S, kAccess, kUsual, kGeneral<F>>(p.space, p.eps, at_[kNoise], span, eps_);
    }
  }

  // `rows` is a value or a constant. Returns the KL of Rows::kOfTiles, summed over the step.
  template <bool kWhole, class R, class Keys>
  __device__ __forceinline__ T finish(const ForwardParams& p, const F& f, const Noise<Keys>& noise,
                                      const Span<kWhole>& span, R rows,
                                      Staged<S, kAccess>* staged) {
    const bool sampled = kComplete || p.z.data, wants_kl = kComplete || rows != Rows::kNone;
    T of_step = 0;
    VAE_FUSED_UNROLL
    for (int b = 0; b < N / C; ++b) {
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      T eps[C];
      // The posterior of floats has a branch, across which ptxas moves nothing. The noise, which
      // needs no load, goes in front of it; 16-bit elements have none, and ptxas does so itself.
      constexpr bool kNoiseFirst = !math::kCoarse<S>;
      if (kNoiseFirst && sampled) first_noise(p, noise, span, b, eps);
      gaussians_.template compute<kWhole>(p.of, f, b, wants_kl, q, prior);
      if (!kNoiseFirst && sampled) first_noise(p, noise, span, b, eps);
      if (sampled) sample(p, f, noise, span, b, q, eps);
      Pack<T, C> kl;
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        kl.s[j] = math::twice_kl(f, f.linear, math::relative(f, q[j], prior[j]));
        if (kGeneral<F> && !gaussians_.counts(p.of, span, b, j)) kl.s[j] = 0;
      }
      if (rows == Rows::kOfTiles) {  // the usual ones first
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) of_step = b + j ? of_step + kl.s[j] : kl.s[j];
      } else if (rows == Rows::kStaged) {
        staged->stage(p.space, span + b * C, kl);
      } else if (rows == Rows::kDirect) {
        T* const out = static_cast<T*>(p.kl);
        store_rows<T, C>(p.space, out, static_cast<T>(p.kl_scale), span + b * C, kl);
      }
    }
    if (sampled) store<S, kAccess, kUsual>(p.space, p.z, at_[kZ], span, z_.pack);
    return of_step;
  }

 private:
  static __device__ __forceinline__ bool given(const ForwardParams& p) {
    return kGeneral<F> && p.eps.data;
  }

  // The noise of chunk b, of the first sample.
  template <bool kWhole, class Keys>
  __device__ __forceinline__ void first_noise(const ForwardParams& p, const Noise<Keys>& noise,
                                              const Span<kWhole>& span, int b, T (&eps)[C]) {
    if (given(p)) {
      widen<kAccess, kWhole, C>(eps_, b, eps);
    } else {
      draw<S, kAccess, kUsual>(p.space, noise, span, at_[kNoise], b, eps);
    }
  }

  // Chunk b of z. Further samples are stored at once.
  template <bool kWhole, class Keys>
  __device__ __forceinline__ void sample(const ForwardParams& p, const F& f,
                                         const Noise<Keys>& noise, const Span<kWhole>& span, int b,
                                         const math::Posterior<T> (&q)[C], const T (&eps)[C]) {
    T z[C];
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      z[j] = math::sample(f, q[j].mu, q[j].scale.sigma, eps[j]);
      if (kGeneral<F> && !gaussians_.counts(p.of, span, b, j)) z[j] = 0;
    }
    z_.template set<kWhole>(b, z);
    constexpr bool kMany = kGeneral<F> && kAccess != Access::kPatched;  // see way_of
    for (int64_t s = 1; kMany && s < p.of.samples; ++s) {
      Pack<S, C> further;
      if (given(p)) {
        load_chunk<S, kAccess>(p.space, p.eps, at_[kNoise], s, b, span, further);
        widen<kAccess, kWhole, C>(further, 0, z);
      } else {
        const int64_t at = at_[kNoise] + s * (p.space.rows * p.space.cols);
        draw<S, kAccess, false>(p.space, noise, span, at, b, z);
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        z[j] = math::sample(f, q[j].mu, q[j].scale.sigma, z[j]);
        if (!gaussians_.counts(p.of, span, b, j)) z[j] = 0;
      }
      narrow<kAccess, kWhole, C>(z, 0, further);
      store_chunk<S, kAccess>(p.z, at_[kZ], s, b, span, further);
    }
  }

  int64_t at_[kOffsets];
  GaussianStep<S, kAccess, F, kUsual> gaussians_;
  Pack<S, N> eps_;
  Results<S, kAccess> z_;
};

// The steps of a tile from `span` on. Returns the thread's sum of theirs.
template <typename S, Access kAccess, bool kUsual, bool kWhole, class F, class R>
__device__ __forceinline__ double forward_steps(
    const ForwardParams& p, const F& f,
    const Stream<kKeySource<Pass::kForward, S, kAccess, F>>& stream, Span<kWhole> span, R rows,
    Staged<S, kAccess>* staged) {
  double sum = 0;
  for (; span.slot < span.end; span = span + kThreads * kStep<S, kAccess>) {
    ForwardStep<S, kAccess, F, kUsual> step;
    step.load(p, rows != Rows::kNone, span);
    sum += static_cast<double>(
        step.finish(p, f, stream.template for_step<kUsual>(), span, rows, staged));
  }
  return sum;
}

template <typename S, Access kAccess, class F>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Pass::kForward, S, kAccess, F>)
    forward_kernel(const __grid_constant__ ForwardParams p, const __grid_constant__ F f,
                   const __grid_constant__ Rows rows, const __grid_constant__ bool usual,
                   int ticket) {
  using T = arithmetic_t<S>;
  constexpr bool kUsual = kHasUsual<S, F>;
  constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  constexpr Known<Rows::kStaged> in_tile;
  constexpr Known<Rows::kOfTiles> of_tiles;
  __shared__ union {
    Staged<S, kAccess> staged;
    double sums[kTilesOfBlock][kThreads];
  } shared;
  Stream<kKeySource<Pass::kForward, S, kAccess, F>> stream(p.key, p.key_out);
  const int log_width = log_lanes((p.space.cols + C - 1) / C);
  int done = 0;  // tiles of this block
  for (int64_t t = blockIdx.x; t < p.space.tiles; t += gridDim.x, ++done) {
    const Tile tile = tile_of(p.space, t);
    double sum = 0;
    bool is_usual =
        kUsual && usual && is_whole<N>(tile) && (rows == Rows::kStaged || rows == Rows::kOfTiles);
    if constexpr (kUsual) {
      is_usual = is_usual && try_share_high_word<S, kAccess>(p.space, tile, stream);
    }
    if (!is_usual) {
      const auto begin = first_span<N, kAlwaysWhole<kAccess>>(tile);
      sum = forward_steps<S, kAccess, false>(p, f, stream, begin, rows, &shared.staged);
    } else if constexpr (kUsual) {
      const auto begin = first_span<N, true>(tile);
      if (rows == Rows::kStaged) {
        forward_steps<S, kAccess, true>(p, f, stream, begin, in_tile, &shared.staged);
      } else {
        sum = forward_steps<S, kAccess, true>(p, f, stream, begin, of_tiles, &shared.staged);
      }
    }
    if (rows == Rows::kStaged) {
      __syncthreads();
      shared.staged.sum_rows(p.space, tile, log_width, p.kl_scale, static_cast<T*>(p.kl));
      __syncthreads();
    } else if (rows == Rows::kOfTiles) {
      shared.sums[done][threadIdx.x] = sum;
    }
  }
  if (rows != Rows::kOfTiles) return;
  __syncthreads();
  const int warp = threadIdx.x / 32;  // adds up the sums of a tile
  if (warp < done) {
    const double sum = sum_by_warp(shared.sums[warp]);
    const int64_t t = blockIdx.x + int64_t{warp} * gridDim.x;
    if (threadIdx.x % 32 == 0) {
      if (p.space.tiles_per_row == 1) {
        static_cast<T*>(p.kl)[t] = static_cast<T>(p.kl_scale * sum);
      } else {
        p.partials[t] = sum;
      }
    }
  }
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
  constexpr int C = kChunk<S, Access::kStrided>;
  Asked asked;
  asked.rows = p.kl;
  asked.rows_misaligned = p.kl && p.space.cols == 1 && !aligned(p.kl, 16);
  asked.complete = p.z.data && p.kl;
  asked.key_noise = p.z.data && !p.eps.data;
  asked.noise_tensor = p.eps.data;
  const Way way =
      way_of<S>(p.space, p.of,
                {{&p.eps, sizeof(S), false, p.eps.step}, {&p.z, sizeof(S), true, p.z.step}}, asked);
  take_noise_from(p.space, p.eps);

  p.kl_scale *= 0.5;  // elements give twice their KL
  const bool vectors = way.access != Access::kScalar;
  const Rows rows = rows_of(p, vectors ? C : 1);
  if (rows == Rows::kStaged) {
    merge_tiles(p.space, staged_tiles(p.space, vectors ? C : 1));
  } else {
    merge_tiles(p.space);
  }
  const int64_t per_block = tiles_of_block(rows, p.space.tiles);
  const int64_t blocks = (p.space.tiles - 1) / per_block + 1;
  const bool combines = p.kl && p.space.tiles_per_row > 1;
  int ticket = kNoTicket;
  if (combines) {
    const cudaError_t error = ticket_slot(stream, &ticket);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error = with_kernels<S>(way, p.of.family, [&](auto access, const auto& family) {
    using F = std::decay_t<decltype(family)>;
    return launch(forward_kernel<S, decltype(access)::value, F>, blocks, stream, p, family, rows,
                  way.usual, ticket);
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

bool is_of_earlier_work(int error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace vae_fused::cuda
