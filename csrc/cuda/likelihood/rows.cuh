// Sums of values over rows, for the forward kernel and for the dot products of a softmax. The order
// of summation depends only on the shape.
//
//   kDirect   a row is one element, so values are stored directly
//   kStaged   a row is at most half a piece; a piece holds whole rows, with values in shared memory
//   kTiled    a row is longer; a tile is a row or a part of one, and consists of one or more pieces
#pragma once

#include "cuda/likelihood/kl_term.cuh"
#include "cuda/likelihood/piece.cuh"
#include "cuda/row_kernel.cuh"

namespace vae_fused::cuda {

// The work of the last block of a launch, or of a second launch if there is no ticket.
struct RowEpilogue {
  int64_t rows = 0, parts_per_row = 0;  // parts: partial sums, or 0 if a row's sum is complete
  RowSums sums;
  KlTerm kl;

  bool is_needed() const { return parts_per_row > 0 || kl.samples; }
};

// The number of partial sums per row. Tiles that consist of whole rows need none.
__host__ __device__ __forceinline__ int64_t parts_of(const Space& space) {
  return space.tiles_per_row > 1 ? space.tiles_per_row : 0;
}

template <typename T>
__device__ __forceinline__ void run_epilogue(int64_t rows, int64_t parts_per_row,
                                             const RowSums& sums, const KlTerm& kl) {
  if (parts_per_row > 0) combine_parts<T>(rows, parts_per_row, sums);
  add_kl<T>(kl, sums.data);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    end_rows_kernel(const __grid_constant__ RowEpilogue epilogue) {
  run_epilogue<T>(epilogue.rows, epilogue.parts_per_row, epilogue.sums, epilogue.kl);
}

// Sums the whole rows of a piece. Between 1 and 32 lanes sum a row. They add four values at a time
// in the values' own type, and then add these sums in double precision.
template <typename T>
__device__ __forceinline__ void sum_rows_of_piece(const Space& space, const Tile& tile,
                                                  double factor, const T* values, T* out) {
  constexpr int kRun = 4;
  const int cols = static_cast<int>(space.cols), log_width = log_lanes(cols);
  const int width = 1 << log_width, lane = threadIdx.x & (width - 1);
  // Every lane must take part in the shuffles, even if it has no row.
  for (int first = 0; first < tile.rows; first += kThreads >> log_width) {
    const int row = first + (threadIdx.x >> log_width);
    double sum = 0;
    if (row < tile.rows) {
      const T* const row_values = values + row * cols;
      for (int at = lane; at < cols; at += kRun * width) {
        T run = 0;
        VAE_FUSED_UNROLL
        for (int j = 0; j < kRun; ++j) {
          if (at + j * width < cols) run += row_values[at + j * width];
        }
        sum += static_cast<double>(run);
      }
    }
    sum = sum_of_lanes(sum, log_width);
    if (row < tile.rows && lane == 0) out[tile.row + row] = static_cast<T>(factor * sum);
  }
}

// The sums of a thread block, which computes tiles one after the other, each in pieces.
template <typename T>
class RowTotals {
 public:
  // With kStaged, values are stored in `values`, in the slots of their elements.
  __device__ __forceinline__ RowTotals(const Space& space, const RowSums& sums,
                                       RowDisposition disposition, T* values)
      : space_(space), sums_(sums), disposition_(disposition), values_(values) {}

  __device__ __forceinline__ void add(const Piece& piece, int slot, T value) {
    if (disposition_ == RowDisposition::kTiled) {
      piece_sum_ += value;
    } else if (disposition_ == RowDisposition::kStaged) {
      values_[slot] = value;
    } else {
      out()[piece.first + slot] = static_cast<T>(sums_.factor) * value;
    }
  }

  __device__ __forceinline__ void end_piece() {
    sum_ += static_cast<double>(piece_sum_);
    piece_sum_ = 0;
  }

  // Call this after a barrier that follows the last value of tile t. The function ends with a
  // barrier. It recomputes the tile's bounds, because registers are scarce where the values are
  // computed.
  __device__ __forceinline__ void end_tile(int64_t t) {
    const Tile tile = tile_of(space_, t);
    if (disposition_ == RowDisposition::kStaged) {
      sum_rows_of_piece(space_, tile, sums_.factor, values_, out());
    } else if (disposition_ == RowDisposition::kTiled) {
      const double sum = sum_of_block(sum_);
      sum_ = 0;
      if (threadIdx.x != 0) {
      } else if (space_.tiles_per_row == 1) {
        out()[tile.row] = static_cast<T>(sums_.factor * sum);
      } else {
        sums_.partials[t] = sum;
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ void end_block(int ticket, const KlTerm& kl) const {
    if (ticket == kNoTicket || !last_block(ticket)) return;
    run_epilogue<T>(space_.rows, parts_of(space_), sums_, kl);
  }

 private:
  __device__ __forceinline__ T* out() const { return static_cast<T*>(sums_.data); }

  const Space& space_;
  const RowSums& sums_;
  RowDisposition disposition_;
  T* values_;
  T piece_sum_ = 0;
  double sum_ = 0;
};

// Divides rows into tiles as RowTotals requires, and distributes the tiles among thread blocks.
template <typename T>
cudaError_t plan_row_sums(Space& space, const RowSums& sums, const KlTerm& kl, cudaStream_t stream,
                          RowPlan& plan) {
  const auto set_whole_rows = [&](int64_t rows_per_tile) {
    space.rows_per_tile = rows_per_tile;
    space.tiles_per_row = 1;
    space.tiles = (space.rows - 1) / rows_per_tile + 1;
  };
  if (space.cols == 1) {
    plan.disposition = RowDisposition::kDirect;
    set_whole_rows(kSlots<T>);
  } else if (space.cols <= kSlots<T> / 2) {
    plan.disposition = RowDisposition::kStaged;
    set_whole_rows(kSlots<T> / space.cols);
  } else {
    plan.disposition = RowDisposition::kTiled;
    if (space.tiles_per_row > 1) {
      merge_tiles(space);
    } else {
      set_whole_rows(1);
    }
  }
  plan.combines = space.tiles_per_row > 1;
  plan.blocks = plan.combines ? space.tiles : (space.tiles - 1) / tiles_to_merge(space.tiles) + 1;
  const RowEpilogue epilogue{space.rows, parts_of(space), sums, kl};
  return epilogue.is_needed() ? ticket_slot(stream, &plan.ticket) : cudaSuccess;
}

// Runs the epilogue in a second launch if the first launch had no ticket. See nll.cu.
cudaError_t launch_epilogue(DType dtype, const RowEpilogue& epilogue, int ticket,
                            cudaStream_t stream);

}  // namespace vae_fused::cuda
