// Kernels with row sums. A thread block computes one or more tiles and sums their values over rows.
// The last block of the launch combines the sums of the tiles.
#pragma once

#include "cuda/row_sums.cuh"
#include "cuda/steps.cuh"
#include "cuda/tickets.cuh"
#include "iteration/rows.h"

namespace vae_fused::cuda {

// The methods by which the values of a row are summed.
enum class RowDisposition {
  kNone,    // no sums are needed
  kDirect,  // a chunk holds whole rows, whose sums are written at once
  kStaged,  // a tile holds whole rows: see row_sums.cuh
  kTiled,   // a row consists of whole tiles
};

// Sums the values of elements over rows. R is RowDisposition or a Constant of that type.
template <typename S, Access kAccess, class R>
class RowSink {
  using T = arithmetic_t<S>;
  static constexpr int C = kChunk<S, kAccess>;

 public:
  __device__ __forceinline__ RowSink(const Space& space, const RowSums& sums, R disposition,
                                     Staged<S, kAccess>* staged)
      : space_(space), sums_(sums), disposition_(disposition), staged_(staged) {}

  __device__ __forceinline__ bool is_present() const {
    return disposition_ != RowDisposition::kNone;
  }

  // Adds the values of chunk b of the step at `span`.
  template <bool kWhole>
  __device__ __forceinline__ void add(const Span<kWhole>& span, int b, const Pack<T, C>& values) {
    if (disposition_ == RowDisposition::kTiled) {  // the most common one first
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) step_sum_ = b + j ? step_sum_ + values.s[j] : values.s[j];
    } else if (disposition_ == RowDisposition::kStaged) {
      staged_->stage(space_, span + b * C, values);
    } else if (disposition_ == RowDisposition::kDirect) {
      T* const out = static_cast<T*>(sums_.data);
      store_rows<T, C>(space_, out, static_cast<T>(sums_.factor), span + b * C, values);
    }
  }

  __device__ __forceinline__ void end_step() {
    sum_ += static_cast<double>(step_sum_);
    step_sum_ = 0;
  }

  // The thread's sum, for RowDisposition::kTiled.
  __device__ __forceinline__ double sum() const { return sum_; }

 private:
  const Space& space_;
  const RowSums& sums_;
  R disposition_;
  Staged<S, kAccess>* staged_;
  T step_sum_ = 0;
  double sum_ = 0;
};

// Combines, in order, the partial sums of rows that consist of several tiles. With few rows, the
// whole block works on each row. Otherwise a row gets as many lanes as it can use.
template <typename T>
__device__ void combine(const Space& space, const RowSums& sums) {
  const int64_t per_row = space.tiles_per_row;
  T* const out = static_cast<T*>(sums.data);
  const bool by_block = space.rows < kThreads / 32;
  const int log_width = by_block ? 8 : log_lanes(per_row), width = 1 << log_width;
  const int lane = threadIdx.x & (width - 1);
  // Every lane must take part in the shuffles, even if it has no row.
  for (int64_t first = 0; first < space.rows; first += kThreads >> log_width) {
    const int64_t row = first + (threadIdx.x >> log_width);
    const bool has_row = row < space.rows;
    double sum = sum_parts(sums.partials + row * per_row, has_row ? per_row : 0, lane, width);
    sum = by_block ? block_sum(sum) : group_sum(sum, log_width);
    if (has_row && lane == 0) out[row] = static_cast<T>(sums.factor * sum);
    if (by_block) __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ Space space, const __grid_constant__ RowSums sums) {
  combine<T>(space, sums);
}

// How a launch sums rows. See `plan_rows`.
struct RowPlan {
  RowDisposition disposition = RowDisposition::kNone;
  int64_t blocks = 0;
  bool combines = false;   // whether partial sums have to be combined
  int ticket = kNoTicket;  // with a ticket, the last block combines them; otherwise a second launch
};

template <typename S, Access kAccess>
union RowShared {
  Staged<S, kAccess> staged;
  double sums[kTilesOfBlock][kThreads];
};

// The body of a kernel with row sums. `has_fast_path` comes from KernelChoice.
template <typename S, Access kAccess, bool kHasFast, class Call>
__device__ __forceinline__ void run_tiles(Call& call, const Space& space, const RowSums& sums,
                                          const RowDisposition& disposition,
                                          const bool& has_fast_path, int ticket,
                                          RowShared<S, kAccess>& shared) {
  using T = arithmetic_t<S>;
  constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  constexpr Constant<RowDisposition::kStaged> staged;
  constexpr Constant<RowDisposition::kTiled> tiled;
  const auto sink = [&](auto value) {
    return RowSink<S, kAccess, decltype(value)>(space, sums, value, &shared.staged);
  };
  const int log_width = log_lanes((space.cols + C - 1) / C);
  int done = 0;  // tiles that this block has computed
  for (int64_t t = blockIdx.x; t < space.tiles; t += gridDim.x, ++done) {
    const Tile tile = tile_of(space, t);
    double sum = 0;
    bool is_fast =
        kHasFast && has_fast_path && is_whole<N>(tile) &&
        (disposition == RowDisposition::kStaged || disposition == RowDisposition::kTiled);
    if constexpr (kHasFast) is_fast = is_fast && call.try_fast_tile(tile);
    if (!is_fast) {
      const auto begin = first_span<N, kAlwaysWhole<kAccess>>(tile);
      auto to = sink(disposition);
      run_steps<S, kAccess, false>(call, begin, to);
      sum = to.sum();
    } else if constexpr (kHasFast) {
      const auto begin = first_span<N, true>(tile);
      if (disposition == RowDisposition::kStaged) {
        auto to = sink(staged);
        run_steps<S, kAccess, true>(call, begin, to);
      } else {
        auto to = sink(tiled);
        run_steps<S, kAccess, true>(call, begin, to);
        sum = to.sum();
      }
    }
    if (disposition == RowDisposition::kStaged) {
      __syncthreads();
      shared.staged.sum_rows(space, tile, log_width, sums.factor, static_cast<T*>(sums.data));
      __syncthreads();
    } else if (disposition == RowDisposition::kTiled) {
      shared.sums[done][threadIdx.x] = sum;
    }
  }
  if (disposition != RowDisposition::kTiled) return;
  __syncthreads();
  const int warp = threadIdx.x / 32;  // each warp adds up the sums of one tile
  if (warp < done) {
    const double sum = sum_by_warp(shared.sums[warp]);
    const int64_t t = blockIdx.x + int64_t{warp} * gridDim.x;
    if (threadIdx.x % 32 == 0) {
      if (space.tiles_per_row == 1) {
        static_cast<T*>(sums.data)[t] = static_cast<T>(sums.factor * sum);
      } else {
        sums.partials[t] = sum;
      }
    }
  }
  if (ticket != kNoTicket && last_block(ticket)) combine<T>(space, sums);
}

// Call this before `merge_tiles`, which may merge a long row into one tile. `chunk` is the number
// of elements in a chunk of the kernel.
inline RowDisposition disposition_of(const Space& space, const RowSums& sums, int chunk) {
  if (!sums.data) return RowDisposition::kNone;
  if (chunk % space.cols == 0) return RowDisposition::kDirect;
  return space.tiles_per_row == 1 ? RowDisposition::kStaged : RowDisposition::kTiled;
}

// Returns how many tiles a thread block computes one after the other. If rows consist of whole
// tiles, a block computes up to four tiles, as long as the launch keeps at least half as many
// blocks as fill any GPU. The reason is that the end of a block, with its barriers and its ticket,
// takes as long as two or three steps of 16-bit elements, and a tile has only four such steps in a
// call with 2^24 elements.
inline int64_t tiles_of_block(RowDisposition disposition, int64_t tiles) {
  if (disposition == RowDisposition::kStaged) return tiles_to_merge(tiles);
  if (disposition != RowDisposition::kTiled) return 1;
  return std::clamp<int64_t>(2 * tiles / VAE_FUSED_ENOUGH_BLOCKS, 1, kTilesOfBlock);
}

// Merges tiles and distributes them among thread blocks. `chunk` is the number of elements in a
// chunk.
inline cudaError_t plan_rows(Space& space, const RowSums& sums, int chunk, cudaStream_t stream,
                             RowPlan& plan) {
  plan.disposition = disposition_of(space, sums, chunk);
  if (plan.disposition == RowDisposition::kStaged) {
    merge_tiles(space, staged_tiles(space, chunk));
  } else {
    merge_tiles(space);
  }
  plan.blocks = (space.tiles - 1) / tiles_of_block(plan.disposition, space.tiles) + 1;
  plan.combines = sums.data && space.tiles_per_row > 1;
  return plan.combines ? ticket_slot(stream, &plan.ticket) : cudaSuccess;
}

// Combines partial sums in a second launch if the first one had no ticket.
template <typename T>
cudaError_t combine_rest(const RowPlan& plan, const Space& space, const RowSums& sums,
                         cudaStream_t stream) {
  if (!plan.combines || plan.ticket != kNoTicket) return cudaSuccess;
  return launch(combine_kernel<T>, 1, stream, space, sums);
}

}  // namespace vae_fused::cuda
