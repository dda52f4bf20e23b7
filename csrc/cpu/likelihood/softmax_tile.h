// Computes the maximum logit of each softmax row and the sum of the exponentials relative to that
// maximum, for one instruction set.
#pragma once

#include "cpu/likelihood/tasks.h"
#include "cpu/rows.h"
#include "math/elementary.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

using math::larger;

// `x` is padded to whole vectors with -inf. A NaN is ignored here, but it makes the sum of the
// exponentials NaN.
template <typename T>
VAE_FUSED_NOINLINE T greatest(const T* x, int n) {
  Lanes<T> most = -math::kInfinity<T>;
  for (int j = 0; j < n; j += kStep<T>) most = larger(get(x + j), most);
  T each[kStep<T>], result = -math::kInfinity<T>;
  put(most, each);
  for (int l = 0; l < kStep<T>; ++l) result = each[l] > result ? each[l] : result;
  return result;
}

template <typename T>
VAE_FUSED_NOINLINE void exponentials(const T* x, T largest, T* out, int n) {
  for (int j = 0; j < n; j += kStep<T>) put(math::exp(get(x + j) - Lanes<T>(largest)), out + j);
}

template <typename T>
VAE_FUSED_NOINLINE void hide_masked(const T* mask, T* x, int n) {
  const T hidden = -math::kInfinity<T>;
  for (int j = 0; j < n; ++j) x[j] = mask[j] == T(0) ? hidden : x[j];
}

// Writes two doubles for each part of a row: its maximum and its sum. A part has up to kTile
// elements.
template <typename S>
void softmax_tiles(void* context, int64_t begin, int64_t end) {
  using T = arithmetic_t<S>;
  const auto& task = *static_cast<const SoftmaxTask*>(context);
  const SoftmaxParams& p = task.params;
  alignas(64) T values[kTile], mask[kPiece];
  for (int64_t t = begin; t < end; ++t) {
    const Tile tile = tile_at(p.space, t);
    for (int r = 0; r < tile.rows; ++r) {
      const Tile row = row_of(tile, r);
      for (int at = 0; at < row.n; at += kPiece) {
        const Piece piece = piece_of(row, at);
        copy_in<S>(p.space, p.logits, piece, values + at);
        if (!p.mask.data) continue;
        load_mask(p.space, p.mask, piece, mask);
        hide_masked(mask, values + at, piece.n);
      }
      const int whole = Piece{0, row.n}.whole();
      for (int j = row.n; j < whole; ++j) values[j] = -math::kInfinity<T>;
      const T largest = greatest(values, whole);
      // If every element of this row is masked or -inf, the origin 0 avoids -inf + inf = NaN.
      const T origin = largest == -math::kInfinity<T> ? T(0) : largest;
      exponentials(values, origin, values, whole);
      double* const part = task.partials + 2 * part_of(p.space, row, t);
      part[0] = static_cast<double>(origin);
      part[1] = sum(values, row.n);
    }
  }
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
