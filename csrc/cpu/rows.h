// Sums of a tile's values over rows, and the gradients of such sums, for one instruction set.
#pragma once

#include "cpu/tile_io.h"
#include "iteration/rows.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// Widening costs more than adding, so four elements are first added in their own type. The error is
// at most 1.2e-7 times the sum of their magnitudes, and the relative error is smaller when many
// such sums are added.
template <typename V>
VAE_FUSED_HD V sum_of_four(V a, V b, V c, V d) {
  return (a + b) + (c + d);
}

// Sixteen interleaved double sums, combined in a fixed order that is the same for every instruction
// set. They are declared as vectors, because GCC 12 unrolls a loop over sixteen scalars and then
// adds them one by one. That loop took 15 % of the Bernoulli forward pass, and the vector code
// takes 4 %.
constexpr int kSums = 16;
template <typename T>
struct HalfOfSums {
  typedef T Vector __attribute__((vector_size(kSums / 2 * sizeof(T))));
};

template <typename T>
VAE_FUSED_NOINLINE double sum(const T* values, int n) {
  using Values = typename HalfOfSums<T>::Vector;
  using Sums = HalfOfSums<double>::Vector;
  const auto at = [&](int j) {
    Values v;
    __builtin_memcpy(&v, values + j, sizeof(v));
    return v;
  };
  Sums low = {}, high = {};
  constexpr int kHalf = kSums / 2;
  int j = 0;
  for (; j + 4 * kSums <= n; j += 4 * kSums) {
    const auto four = [&](int k) {
      const Values v = sum_of_four(at(k), at(k + kSums), at(k + 2 * kSums), at(k + 3 * kSums));
      return __builtin_convertvector(v, Sums);
    };
    low += four(j);
    high += four(j + kHalf);
  }
  for (; j + kSums <= n; j += kSums) {
    low += __builtin_convertvector(at(j), Sums);
    high += __builtin_convertvector(at(j + kHalf), Sums);
  }
  double sum[kSums];
  __builtin_memcpy(sum, &low, sizeof(low));
  __builtin_memcpy(sum + kHalf, &high, sizeof(high));
  for (int l = 0; l < n - j; ++l) sum[l] += static_cast<double>(values[j + l]);
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sum[l] += sum[l + width];
  }
  return sum[0];
}

// Sums a few elements. With `sum`, the function call and the sixteen sums took 16 ns per row, and
// rows of two elements took 9.1 ns per element. With this function, the processor overlaps the sums
// of several rows.
template <typename T>
VAE_FUSED_HD double sum_short(const T* values, int n) {
  double sum = 0;
  int j = 0;
  for (; j + 4 <= n; j += 4) {
    sum += static_cast<double>(sum_of_four(values[j], values[j + 1], values[j + 2], values[j + 3]));
  }
  for (; j < n; ++j) sum += static_cast<double>(values[j]);
  return sum;
}

// Sums the values of tile t, whose rows have `tile.n / tile.rows` values each.
template <typename T>
VAE_FUSED_NOINLINE void sum_rows(const RowSums& sums, const Tile& tile, int64_t t,
                                 const T* values) {
  if (sums.partials) {
    sums.partials[t] = sum(values, tile.n);
    return;
  }
  T* const out = static_cast<T*>(sums.data) + tile.row;
  const int cols = tile.n / tile.rows;
  const double factor = sums.factor;
  if (cols == 1) {  // reduction="none": no sum, so keep the loop vectorisable
    const T narrow_factor = static_cast<T>(factor);
    for (int j = 0; j < tile.n; ++j) out[j] = narrow_factor * values[j];
    return;
  }
  if (cols < 4 * kSums) {
    for (int r = 0; r < tile.rows; ++r) {
      out[r] = static_cast<T>(factor * sum_short(values + r * cols, cols));
    }
    return;
  }
  for (int r = 0; r < tile.rows; ++r) {
    out[r] = static_cast<T>(factor * sum(values + r * cols, cols));
  }
}

// The gradients of a piece's elements. The gradient of a row is stored in whole vectors, which may
// extend into the next row, whose gradient is stored later. After the last row, the buffer has room
// for one more vector.
template <typename T>
using RowsBuffer = T[kPiece + kWidth];

template <typename T>
VAE_FUSED_NOINLINE void load_row_grads(const Space& space, const RowGrads& grads, const Tile& tile,
                                       Piece piece, RowsBuffer<T>& out) {
  const int at = static_cast<int>(piece.begin - tile.begin), n = piece.n;
  const T* const data = static_cast<const T*>(grads.data);
  const T factor = static_cast<T>(grads.factor);
  if (grads.stride == 0) return fill_with(factor * *data, out, piece.whole());
  if (space.cols == 1) {
    for (int j = 0; j < n; ++j) out[j] = factor * data[tile.row + at + j];
    return pad(piece, out);
  }
  const int cols = tile.n / tile.rows;
  for (int r = at / cols, begin = 0; begin < n; ++r) {
    const Lanes<T> grad = factor * data[tile.row + r];
    const int next = (r + 1) * cols - at, end = next < n ? next : n;
    for (int j = begin; j < end; j += kStep<T>) put(grad, out + j);
    begin = end;
  }
  pad(piece, out);
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
