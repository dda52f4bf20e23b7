// A tile of the forward kernel, for one instruction set. One loop computes the value of every
// element as if its count were 0. The elements with other counts are collected, and a second loop
// computes what they add. They are 2 to 12 % of single-cell data, but most vectors contain one.
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

template <class L, typename S, typename T>
VAE_FUSED_HD void nll_piece(const NllParams& p, const math::LikelihoodOptions<T>& o,
                            const Piece& piece, T* out) {
  Inputs<L, T> inputs;
  Prefetcher prefetcher(kPiece * sizeof(S));
  load_inputs<L, S>(p.space, p.of, piece, inputs, prefetcher);
  const int n = piece.whole();
  const bool masked = p.of.mask.data, weighted = p.of.weight.data;
  values<L>(o, inputs.in, out, n);
  if constexpr (L::kIsCount) add_counts<L>(o, inputs, masked, out, piece.n);
  if (!masked && !weighted) return;
  if (weighted) copy_in<T>(p.space, p.of.weight, piece, inputs.scratch);
  with_flags([&](auto m, auto w) { weigh<m, w>(inputs.mask, inputs.scratch, out, n); }, masked,
             weighted);
}

template <class L, typename S>
void nll_tiles(void* context, int64_t begin, int64_t end) {
  using T = arithmetic_t<S>;
  const auto& task = *static_cast<const LikelihoodTask<NllParams>*>(context);
  const NllParams& p = task.params;
  alignas(64) T out[kTile];
  for (int64_t t = begin; t < end; ++t) {
    const Tile tile = tile_at(p.space, t);
    for (int at = 0; at < tile.n; at += kPiece) {
      nll_piece<L, S>(p, task.options_of(T{}), piece_of(tile, at), out + at);
    }
    sum_rows(p.space, p.nll, tile, t, out);
  }
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
