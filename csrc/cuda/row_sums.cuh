// Sums the whole rows of a tile. The sums of its chunks are staged in shared memory, and are then
// added up row by row.
//
// A chunk of C elements holds parts of at most two rows if rows have at least C - 1 columns. The
// chunk's head belongs to the row in which the chunk begins, and its tail belongs to the next row.
// If C is a multiple of the number of columns, a chunk holds whole rows, which are not staged
// (`store_rows`).
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/tile.cuh"

namespace vae_fused::cuda {

// Whether chunks have tails.
__host__ __device__ __forceinline__ bool has_tails(const Space& space, int chunk) {
  return static_cast<uint32_t>(space.cols) % chunk != 0;
}

// The number of tiles of the space whose sums are staged together. The sums take 8 KB, or 16 KB in
// double. Tails, if there are any, take half of this memory. With 8 KB more per block, an SM with
// 64 KB would hold three blocks instead of four.
inline int64_t staged_tiles(const Space& space, int chunk) {
  return has_tails(space, chunk) ? chunk / 2 : chunk;
}

template <typename S, Access kAccess>
struct Staged {
  using T = arithmetic_t<S>;
  static constexpr int C = kChunk<S, kAccess>;
  // The maximum number of tails. Twice this number of entries has room for the heads of C tiles, or
  // for the heads and tails of C / 2 tiles. The two additional steps are needed because a tile may
  // begin and end within a step.
  static constexpr int kTails = (kTile * C / 2 + 2 * kStep<S, kAccess>) / C;

  T heads[2 * kTails];

  // A row of a channels_last space consists of whole steps and has no tails.
  static __device__ __forceinline__ bool has_tails(const Space& space) {
    return kAccess != Access::kChannelsLast && cuda::has_tails(space, C);
  }

  // Stages the sums of the chunk at `part`.
  template <bool kWhole>
  __device__ __forceinline__ void stage(const Space& space, const Span<kWhole>& part,
                                        const Pack<T, C>& kl) {
    int head_size = C;  // elements that belong to the row in which the chunk begins
    if (has_tails(space)) {
      const int at = part.in_tile(), cols = static_cast<int>(space.cols);
      head_size = at < 0 ? -at : (static_cast<int>(row_in_tile(space, at)) + 1) * cols - at;
    }
    T head = kl.s[0], tail = 0;
    VAE_FUSED_UNROLL
    for (int j = 1; j < C; ++j) {
      if (j < head_size) head += kl.s[j];
      if (j >= head_size) tail += kl.s[j];
    }
    heads[part.slot / C] = head;
    if (has_tails(space)) heads[kTails + part.slot / C] = tail;
  }

  // Writes `factor` times the sum of each row. 2^log_width lanes add up the chunks of a row.
  __device__ __forceinline__ void sum_rows(const Space& space, const Tile& tile, int log_width,
                                           double factor, T* out) const {
    constexpr uint32_t kRun = 4;  // a lane adds this many sums in their own type, then in double
    const auto cols = static_cast<uint32_t>(space.cols), rows = static_cast<uint32_t>(tile.rows);
    const uint32_t begin = tile.begin & (kStep<S, kAccess> - 1), width = 1u << log_width;
    const uint32_t lane = threadIdx.x & (width - 1);
    // Every lane must take part in the shuffles, even if it has no row.
    for (uint32_t first = 0; first < rows; first += kThreads >> log_width) {
      const uint32_t row = first + (threadIdx.x >> log_width);
      double sum = 0;
      if (row < rows) {
        const uint32_t from = begin + row * cols, end = (from + cols - 1) / C + 1;
        if (has_tails(space) && from % C != 0 && lane == 0) {
          sum = static_cast<double>(heads[kTails + from / C]);
        }
        for (uint32_t at = (from + C - 1) / C + lane; at < end; at += kRun * width) {
          T run = 0;
          // The loads are unconditional, because nvcc recomputes the shared-memory address for a
          // conditional load.
          VAE_FUSED_UNROLL
          for (uint32_t j = 0; j < kRun; ++j) {
            const uint32_t i = at + j * width;
            const T head = heads[i < end ? i : end - 1];
            if (i < end) run += head;
          }
          sum += static_cast<double>(run);
        }
      }
      sum = group_sum(sum, log_width);
      if (row < rows && lane == 0) out[tile.row + row] = static_cast<T>(factor * sum);
    }
  }
};

// Writes `factor` times the sums of the rows in a chunk of C elements. Rows have 1, 2 or C columns.
template <typename T, int C, bool kWhole>
__device__ __forceinline__ void store_rows(const Space& space, T* out, T factor,
                                           const Span<kWhole>& part, Pack<T, C> kl) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < C; ++j) kl.s[j] *= factor;
  if (space.cols == 1) return store_vector<T, C>(out + part.element(), part, kl);
  const bool two = space.cols == 2;
  const Span<kWhole> rows = two ? part / 2 : part / C;
  T first = kl.s[0] + kl.s[C > 1], second = 0;
  VAE_FUSED_UNROLL
  for (int j = 2; j < C; ++j) second += kl.s[j];
  if (rows.has(0)) out[rows.element()] = two ? first : first + second;
  if (C > 2 && two && rows.has(1)) out[rows.element() + 1] = second;
}

}  // namespace vae_fused::cuda
