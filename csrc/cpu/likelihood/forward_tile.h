// Computes a tile of the forward kernel, for one instruction set.
//
// For count likelihoods, one loop computes the value of every element as if its count were 0. The
// elements with nonzero counts are collected, and a second loop computes the terms that their
// counts add. In single-cell data, 2 to 12 % of the elements have nonzero counts, but most vectors
// contain at least one such element.
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

// Values that have the form of LogTerms are added in groups of eight, with a single logarithm of
// the product of their factors 1 + e^exponent. The elements of a group are kSums apart, so the
// groups are the same for vectors of any width.
constexpr int kValuesOfGroup = 8;
constexpr int kGroup = kValuesOfGroup * kSums;

// A sum of values in two parts: the sum of their linear terms, and the excess over 1 of the product
// of their factors 1 + e^exponent.
template <typename F>
struct SumOfValues {
  F linear, excess;
};

// Sums four values that are kSums elements apart. An infinite exponent times a weight of 0 is NaN,
// which makes the sum NaN. Replacing the product with 0 takes two of the 28 instructions per
// element, so it is done only if the sum is NaN.
template <class L, bool masked, typename T>
VAE_FUSED_HD SumOfValues<Lanes<T>> sum_of_four_values(const T* const* in, const T* mask, int at) {
  using F = Lanes<T>;
  math::LogTerms<F> terms[4];
  F product[4], excess[4];
  for (int g = 0; g < 4; ++g, at += kSums) {
    F x[L::kInputs];
    for (int i = 0; i < L::kInputs; ++i) x[i] = get(in[i] + at);
    terms[g] = L::log_terms(x);
    terms[g].weight = zero_if_masked<masked>(mask, at, terms[g].weight);
    product[g] = terms[g].exponent * terms[g].weight;
    excess[g] = zero_if_masked<masked>(mask, at, math::exp_of_negative(terms[g].exponent));
  }
  F linear = sum_of_four(product[0], product[1], product[2], product[3]);
  if (!all(linear == linear)) {
    for (int g = 0; g < 4; ++g) product[g] = linear_term(terms[g]);
    linear = sum_of_four(product[0], product[1], product[2], product[3]);
  }
  return {linear, math::excess_of_product(math::excess_of_product(excess[0], excess[1]),
                                          math::excess_of_product(excess[2], excess[3]))};
}

// Writes the sums of the groups of n elements, where n is a multiple of kGroup.
template <class L, bool masked, typename T>
VAE_FUSED_NOINLINE void sums_of_groups(const T* const* in, const T* mask, int n, T* out) {
  for (int j = 0; j < n; j += kGroup) {
    for (int k = 0; k < kSums; k += kStep<T>) {
      const auto a = sum_of_four_values<L, masked>(in, mask, j + k);
      const auto b = sum_of_four_values<L, masked>(in, mask, j + k + kGroup / 2);
      put(math::log1p(math::excess_of_product(a.excess, b.excess)) - (a.linear + b.linear),
          out + j / kValuesOfGroup + k);
    }
  }
}

// Writes the sums of the groups of a piece, followed by the values of the remaining elements.
// Returns how many values it has written.
template <class L, typename T>
VAE_FUSED_HD int grouped_values(const math::LikelihoodOptions<T>& o, const Inputs<L, T>& inputs,
                                bool masked, int n, T* out) {
  const int whole = n / kGroup * kGroup, rest = Piece{0, n - whole}.whole();
  masked ? sums_of_groups<L, true>(inputs.in, inputs.mask, whole, out)
         : sums_of_groups<L, false>(inputs.in, inputs.mask, whole, out);
  const T* in[L::kInputs];
  for (int i = 0; i < L::kInputs; ++i) in[i] = inputs.in[i] + whole;
  T* const left = out + whole / kValuesOfGroup;
  values<L>(o, in, left, rest);
  if (masked) weigh<true, false>(inputs.mask + whole, inputs.mask + whole, left, rest);
  return whole / kValuesOfGroup + n - whole;
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
    put(L::count_term(o, x), added + j);
  }
  for (int j = 0; j < count; ++j) out[positions[j]] += added[j];
}

// Writes the values of a piece, or the sums of their groups. Returns how many values it has
// written.
template <class L, typename S, typename T>
VAE_FUSED_HD int nll_piece(const NllParams& p, const math::LikelihoodOptions<T>& o,
                           const Piece& piece, bool grouped, T* out) {
  Inputs<L, T> inputs;
  Prefetcher prefetcher(kPiece * sizeof(S));
  load_inputs<L, S>(p.space, p.observations, piece, inputs, prefetcher);
  const int n = piece.whole();
  const bool masked = p.observations.mask.data, weighted = p.observations.weight.data;
  if constexpr (math::kHasLogTerms<L>) {
    if (grouped) return grouped_values(o, inputs, masked, piece.n, out);
  }
  values<L>(o, inputs.in, out, n);
  if constexpr (L::kIsCount) add_counts<L>(o, inputs, masked, out, piece.n);
  if (!masked && !weighted) return piece.n;
  if (weighted) copy_in<T>(p.space, p.observations.weight, piece, inputs.scratch);
  with_flags([&](auto m, auto w) { weigh<m, w>(inputs.mask, inputs.scratch, out, n); }, masked,
             weighted);
  return piece.n;
}

// Whether the values of a call are added in groups, within pieces that do not cross rows. Weighted
// values cannot share a logarithm, because each value's logarithm has a different weight. Apart
// from weights, the choice depends only on the shape, as the order of summation does.
template <class L>
VAE_FUSED_HD bool has_groups(const NllParams& p) {
  return math::kHasLogTerms<L> && !p.observations.weight.data && p.space.cols >= kGroup &&
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
