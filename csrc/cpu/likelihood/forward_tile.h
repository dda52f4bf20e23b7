// A tile of the forward kernel, for one instruction set.
//
// Counts: one loop computes the value of every element as if its count were 0. The elements with
// other counts are collected, and a second loop computes what they add. They are 2 to 12 % of
// single-cell data, but most vectors contain one.
#pragma once

#include "cpu/likelihood/inputs.h"
#include "cpu/rows.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

template <class L, typename T>
VAE_FUSED_NOINLINE void values(math::LikelihoodOptions<T> o, const T* const* in, T* out, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    Lanes<T> x[L::kInputs];
    for (int k = 0; k < L::kInputs; ++k) x[k] = get(in[k] + j);
    put(L::value(o, x), out + j);
  }
}

// Where values are linear + ln(1 + excess), four of them are added with one logarithm, that of the
// product of their 1 + excess. This saves 25 % of the time of a Bernoulli's forward pass. The four
// are kSums elements apart, so they are the same four for vectors of any width.
constexpr int kGroup = 4 * kSums;

// (1 + a)(1 + b) - 1, which keeps the digits of small a and b.
template <typename F>
VAE_FUSED_HD F excess_of_product(F a, F b) {
  return a * b + (a + b);
}

// Writes the sums of n / 4 groups of four values. n is a multiple of kGroup.
template <class L, bool masked, typename T>
VAE_FUSED_NOINLINE void sums_of_groups(const T* const* in, const T* mask, int n, T* out) {
  for (int j = 0; j < n; j += kGroup) {
    for (int k = 0; k < kSums; k += kStep<T>) {
      Lanes<T> linear[4], excess[4];
      for (int g = 0; g < 4; ++g) {
        const int at = j + k + g * kSums;
        Lanes<T> x[L::kInputs];
        for (int i = 0; i < L::kInputs; ++i) x[i] = get(in[i] + at);
        const math::LogTerms<Lanes<T>> terms = L::log_terms(x);
        linear[g] = zero_if_masked<masked>(mask, at, terms.linear);
        excess[g] = zero_if_masked<masked>(mask, at, terms.excess);
      }
      const auto product = excess_of_product(excess_of_product(excess[0], excess[1]),
                                             excess_of_product(excess[2], excess[3]));
      put(sum_of_four(linear[0], linear[1], linear[2], linear[3]) + math::log1p(product),
          out + j / 4 + k);
    }
  }
}

// Writes the values of a piece: the sums of its groups, and then the values that remain. Returns
// how many numbers these are.
template <class L, typename T>
VAE_FUSED_HD int grouped_values(const math::LikelihoodOptions<T>& o, const Inputs<L, T>& inputs,
                                bool masked, int n, T* out) {
  const int whole = n / kGroup * kGroup, rest = Piece{0, n - whole}.whole();
  masked ? sums_of_groups<L, true>(inputs.in, inputs.mask, whole, out)
         : sums_of_groups<L, false>(inputs.in, inputs.mask, whole, out);
  const T* in[L::kInputs];
  for (int i = 0; i < L::kInputs; ++i) in[i] = inputs.in[i] + whole;
  T* const left = out + whole / 4;
  values<L>(o, in, left, rest);
  if (masked) weigh<true, false>(inputs.mask + whole, inputs.mask + whole, left, rest);
  return whole / 4 + n - whole;
}

template <class L, typename T>
VAE_FUSED_NOINLINE void add_counts(math::LikelihoodOptions<T> o, const Inputs<L, T>& inputs,
                                   bool masked, T* out, int n) {
  Positions positions;
  const int count = collect_counts(inputs, masked, n, positions);
  if (count == 0) return;
  alignas(64) T dense[L::kInputs][kPiece], added[kPiece];
  const int whole = gather<L::kInputs>(inputs.in, positions, count, dense);
  for (int j = 0; j < whole; j += kStep<T>) {
    Lanes<T> x[L::kInputs];
    for (int k = 0; k < L::kInputs; ++k) x[k] = get(dense[k] + j);
    put(L::of_count(o, x), added + j);
  }
  for (int j = 0; j < count; ++j) out[positions[j]] += added[j];
}

// Writes the values of a piece, or the sums of their groups. Returns how many numbers these are.
template <class L, typename S, typename T>
VAE_FUSED_HD int nll_piece(const NllParams& p, const math::LikelihoodOptions<T>& o,
                           const Piece& piece, bool grouped, T* out) {
  Inputs<L, T> inputs;
  Prefetcher prefetcher(kPiece * sizeof(S));
  load_inputs<L, S>(p.space, p.of, piece, inputs, prefetcher);
  const int n = piece.whole();
  const bool masked = p.of.mask.data, weighted = p.of.weight.data;
  if constexpr (math::kHasLogTerms<L>) {
    if (grouped) return grouped_values(o, inputs, masked, piece.n, out);
  }
  values<L>(o, inputs.in, out, n);
  if constexpr (L::kIsCount) add_counts<L>(o, inputs, masked, out, piece.n);
  if (!masked && !weighted) return piece.n;
  if (weighted) copy_in<T>(p.space, p.of.weight, piece, inputs.scratch);
  with_flags([&](auto m, auto w) { weigh<m, w>(inputs.mask, inputs.scratch, out, n); }, masked,
             weighted);
  return piece.n;
}

// Whether the values of a call are added in groups, within pieces that do not cross rows. With
// weights that is impossible, because a weight would be a factor of a logarithm. The choice depends
// only on the shape, as the order of summation does.
template <class L>
VAE_FUSED_HD bool has_groups(const NllParams& p) {
  return math::kHasLogTerms<L> && !p.of.weight.data && p.space.cols >= kGroup &&
         (p.space.tiles_per_row > 1 || p.space.cols % kSums == 0);
}

template <class L, typename S>
void nll_tiles(void* context, int64_t begin, int64_t end) {
  using T = arithmetic_t<S>;
  const auto& task = *static_cast<const LikelihoodTask<NllParams>*>(context);
  const NllParams& p = task.params;
  alignas(64) T out[kTile];
  const bool grouped = has_groups<L>(p);
  const int64_t row = grouped ? p.space.cols : row_of_pieces(p.space.cols);
  for (int64_t t = begin; t < end; ++t) {
    const Tile tile = tile_at(p.space, t);
    int count = 0;
    for (int at = 0; at < tile.n;) {
      const Piece piece = piece_of(tile, at, row);
      count += nll_piece<L, S>(p, task.options_of(T{}), piece, grouped, out + count);
      at += piece.n;
    }
    sum_rows(p.nll, {tile.begin, tile.row, count, tile.rows}, t, out);
  }
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
