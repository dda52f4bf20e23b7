// The iteration space of a call and its tiles.
#pragma once

#include "iteration/divide.h"
#include "iteration/operand.h"

namespace vae_fused {

// The number of elements in a tile. A CPU task computes one tile, and a thread block on a GPU
// computes one or several.
constexpr int kTile = 2048;

// The number of tiles in a row that shares no tile with another row.
inline int64_t tiles_of(int64_t elements) { return (elements + kTile - 1) / kTile; }

// Elements are visited in "flat" order: the kept dimensions first, then the summed ones, so that
// flat element e belongs to row e / cols of the KL. Neighbouring dimensions are merged if every
// operand allows it, and dimensions of size 1 are dropped. Contiguous tensors then have one
// dimension, and the results of torch.chunk have two.
//
// The tiling depends only on the shape, never on the number of threads or SMs, and it fixes the
// order of summation:
//   cols <= kTile:  a tile is `rows_per_tile` whole rows;   tiles_per_row = 1
//   cols >  kTile:  a row is `tiles_per_row` tiles of `tile` elements;   rows_per_tile = 1
struct Space {
  int32_t ndim = 0;
  int64_t size[kMaxDims] = {};  // outermost first
  Divisor size_divisor[kMaxDims];
  // The strides from which i, the row-major index of z, is computed. If a call has an explicit eps,
  // CUDA launches replace these strides with those of eps.
  int64_t noise_stride[kMaxDims] = {};
  bool has_contiguous_noise = false;  // i == e everywhere
  bool has_32_bit_offsets = false;    // elements and offsets are all below 2^31
  bool pixel_pairs = false;           // in CUDA kernels: `store_pixels` stores the results
  int64_t rows = 0, cols = 0;
  int64_t rows_per_tile = 0, tiles_per_row = 0, tiles = 0;
  int64_t tile = kTile;
  DivisorOf<uint32_t> tiles_per_row_divisor;  // divides the index of a tile
  uint32_t cols_reciprocal = 0;  // ceil(2^32 / cols) where 1 < cols <= kTile: see row_in_tile
};

// The flat elements of a tile, and its rows.
struct Tile {
  int64_t begin, row;
  int n, rows;
};

// Tile `part` of a row that shares no tile with another row.
VAE_FUSED_HD Tile tile_of_row(const Space& space, int64_t row, uint32_t part) {
  const int64_t col = static_cast<int64_t>(uint64_t{part} * static_cast<uint32_t>(space.tile));
  const int64_t rest = space.cols - col;
  return {row * space.cols + col, row, static_cast<int>(rest < space.tile ? rest : space.tile), 1};
}

// Tile t of a space whose tiles consist of whole rows.
VAE_FUSED_HD Tile tile_of_rows(const Space& space, int64_t t) {
  const int64_t row = t * space.rows_per_tile;
  const int64_t rest = space.rows - row;
  const int rows = static_cast<int>(rest < space.rows_per_tile ? rest : space.rows_per_tile);
  return {row * space.cols, row, rows * static_cast<int>(space.cols), rows};
}

VAE_FUSED_HD Tile tile_at(const Space& space, int64_t t) {
  if (space.tiles_per_row == 1) return tile_of_rows(space, t);
  return tile_of_row(space, t / space.tiles_per_row,
                     static_cast<uint32_t>(t % space.tiles_per_row));
}

// The row of element `at` of a tile, counted from the tile's first row. The tile must consist of
// whole rows with more than one column. The result is exact if at * cols < 2^32.
VAE_FUSED_HD uint32_t row_in_tile(const Space& space, uint32_t at) {
  return math::mulhi(at, space.cols_reciprocal);
}

}  // namespace vae_fused
