// Computes a tile of the backward kernel, for one instruction set.
//
// A parameter that rows share, such as the theta of a gene, has one gradient for all of these rows.
// So a task computes the same columns of several rows. It adds eight rows at a time in the
// arithmetic dtype, and then adds those sums in double precision. Adding each row in double
// precision takes 9 % longer, and adding all rows in single precision loses digits. Each group of
// rows writes its sums, which are then added in order.
#pragma once

#include "cpu/likelihood/forward_tile.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

constexpr int kRowsOfSum = 8;

// The gradients of a piece's terms: dense, or one vector that all elements share. Filling a buffer
// with the gradient of a row instead took 6 % of the Bernoulli backward pass.
template <typename T>
struct TermGrads {
  const T* values;
  int index_mask = ~0;

  VAE_FUSED_HD Lanes<T> at(int j) const { return get(values + (j & index_mask)); }
};

// Computes the gradients of all inputs and, if `with_values`, also the values, which share
// exponentials and logarithms with the gradients.
template <class L, bool with_values, typename T>
VAE_FUSED_NOINLINE void adjoints(math::LikelihoodOptions<T> o, const T* const* in,
                                 TermGrads<T> grads, T* const* out, T* values, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    Lanes<T> x[L::kInputs], dx[L::kInputs];
    for (int k = 0; k < L::kInputs; ++k) x[k] = get(in[k] + j);
    if constexpr (with_values) put(L::value(o, x), values + j);
    L::adjoint(o, x, grads.at(j), dx);
    for (int k = 0; k < L::kInputs; ++k) {
      if (out[k]) put(dx[k], out[k] + j);
    }
  }
}

// Adds the contributions of nonzero counts to the gradients of all parameters except the first.
template <class L, typename T>
VAE_FUSED_NOINLINE void add_count_adjoints(math::LikelihoodOptions<T> o, const Inputs<L, T>& inputs,
                                           bool masked, const T* grad, T* const* out, int n) {
  Positions positions;
  const int count = collect_counts(inputs, masked, n, positions);
  if (count == 0) return;
  alignas(64) T dense[L::kInputs][kPiece], gradient[1][kPiece], added[kTarget<L>][kPiece];
  const int whole = gather<L::kInputs>(inputs.in, positions, count, dense);
  gather<1>(&grad, positions, count, gradient);
  for (int j = 0; j < whole; j += kStep<T>) {
    Lanes<T> x[L::kInputs], dx[L::kInputs];
    for (int k = 0; k < L::kInputs; ++k) {
      x[k] = get(dense[k] + j);
      dx[k] = T(0);
    }
    L::count_term_adjoint(o, x, get(gradient[0] + j), dx);
    for (int k = 1; k < kTarget<L>; ++k) put(dx[k], added[k] + j);
  }
  for (int k = 1; k < kTarget<L>; ++k) {
    if (!out[k]) continue;
    for (int j = 0; j < count; ++j) out[k][positions[j]] += added[k][j];
  }
}

template <typename T>
VAE_FUSED_NOINLINE void scale_by(T factor, const T* x, T* out, int n) {
  for (int j = 0; j < n; j += kStep<T>) put(factor * get(x + j), out + j);
}

template <typename T>
VAE_FUSED_NOINLINE void multiply_by(const T* factor, T* out, int n) {
  for (int j = 0; j < n; j += kStep<T>) put(get(factor + j) * get(out + j), out + j);
}

// Converts gradients g of the logarithm of the mean to gradients of the softmax logits, g_j - p_j
// sum_k g_k. `dot` contains the sum over k.
template <typename T>
VAE_FUSED_NOINLINE void through_softmax(const T* log_mean, const T* library, const T* dot, T* grad,
                                        int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> share = math::exp(get(log_mean + j) - get(library + j));
    put(get(grad + j) - share * get(dot + j), grad + j);
  }
}

// Returns the gradient of each element's term: grad * factor * weight, or 0 if the element is
// masked. Unless `is_dense`, the result may be one vector that all elements share.
template <typename T>
VAE_FUSED_HD TermGrads<T> load_grad(const NllBackwardParams& p, const Piece& piece, const T* mask,
                                    bool is_dense, T* weight, T* grad) {
  const int n = piece.whole();
  const bool masked = p.observations.mask.data, weighted = p.observations.weight.data;
  if (p.grad.data && is_one_value(p.space, p.grad, piece)) {
    const bool is_filled = is_dense || masked || weighted;
    const T value = static_cast<T>(p.factor) * *at_first<T>(p.space, p.grad, piece);
    fill_with(value, grad, is_filled ? n : kWidth);
    if (!is_filled) return {grad, 0};
  } else if (p.grad.data) {
    copy_in<T>(p.space, p.grad, piece, grad);
    scale_by(static_cast<T>(p.factor), grad, grad, n);
  } else {
    fill_with(static_cast<T>(p.factor), grad, n);
  }
  if (weighted) copy_in<T>(p.space, p.observations.weight, piece, weight);
  if (masked || weighted) {
    with_flags([&](auto m, auto w) { weigh<m, w>(mask, weight, grad, n); }, masked, weighted);
  }
  return {grad};
}

// The sums of a piece's gradients for a parameter that is shared along rows, columns or both.
template <typename T>
struct SharedSums {
  bool by_column = false, by_row = false;
  T recent[kTile];      // by column: over the last few rows
  double total[kTile];  // by column
  double row_sum = 0;   // by row: over this task's columns

  VAE_FUSED_HD void begin(const Space& space, const Operand& operand, int columns) {
    if (!operand.data) return;
    by_row = operand.stride[space.ndim - 1] == 0;
    by_column = !by_row;
    if (!by_column) return;
    for (int c = 0; c < columns; ++c) recent[c] = T(0);
    for (int c = 0; c < columns; ++c) total[c] = 0;
  }
};

template <typename T>
VAE_FUSED_NOINLINE void add_to(const T* x, T* to, int n) {
  for (int j = 0; j < n; ++j) to[j] += x[j];
}

template <typename T>
VAE_FUSED_NOINLINE void flush(T* recent, double* total, int n) {
  for (int j = 0; j < n; ++j) {
    total[j] += static_cast<double>(recent[j]);
    recent[j] = T(0);
  }
}

template <class L, typename S>
struct BackwardPiece {
  using T = arithmetic_t<S>;
  Inputs<L, T> inputs;
  alignas(64) T grad[kPiece], results[L::kInputs][kPiece];
  bool has_one_grad;  // all elements of the call have the same gradient

  VAE_FUSED_HD explicit BackwardPiece(const NllBackwardParams& p)
      : has_one_grad(is_constant(p.space, p.grad) && !p.observations.mask.data &&
                     !p.observations.weight.data) {
    const T given = p.grad.data ? *static_cast<const T*>(p.grad.data) : T(1);
    if (has_one_grad) fill_with(static_cast<T>(p.factor) * given, grad, kPiece);
  }

  // Reads a piece and returns the gradients of its terms. If `is_dense`, `grad` contains one
  // gradient per element.
  VAE_FUSED_HD TermGrads<T> read(const NllBackwardParams& p, const Piece& piece, bool is_dense) {
    Prefetcher prefetcher(kPiece * sizeof(S));
    load_inputs<L, S>(p.space, p.observations, piece, inputs, prefetcher);
    if (has_one_grad) return {grad};
    return load_grad(p, piece, inputs.mask, is_dense, inputs.scratch, grad);
  }

  // Writes the gradients as `adjoints` does, and returns the sum of the elements' values, each
  // multiplied by the gradient of its term.
  VAE_FUSED_HD double value_and_adjoints(const NllBackwardParams& p,
                                         const math::LikelihoodOptions<T>& o, const Piece& piece,
                                         T** out) const {
    alignas(64) T values[kPiece];
    adjoints<L, true>(o, inputs.in, {grad}, out, values, piece.whole());
    if constexpr (L::kIsCount) add_counts<L>(o, inputs, p.observations.mask.data, values, piece.n);
    multiply_by(grad, values, piece.whole());
    // The gradient of a masked term is 0, but its product with a NaN value is NaN.
    if (p.observations.mask.data)
      weigh<true, false>(inputs.mask, inputs.mask, values, piece.whole());
    return sum(values, piece.n);
  }

  // Writes the gradient of input k to `out[k]` unless `out[k]` is null. Adds the value to `*total`
  // unless `total` is null.
  VAE_FUSED_HD void run(const NllBackwardParams& p, const math::LikelihoodOptions<T>& o,
                        const Piece& piece, const Operand* const* to, T** out, double* total) {
    const TermGrads<T> grads = read(p, piece, L::kIsCount || total);
    const int n = piece.whole();
    if (total) {
      *total += value_and_adjoints(p, o, piece, out);
    } else {
      adjoints<L, false>(o, inputs.in, grads, out, static_cast<T*>(nullptr), n);
    }
    const bool masked = p.observations.mask.data;
    if constexpr (L::kIsCount) {
      add_count_adjoints<L>(o, inputs, masked, grad, out, piece.n);
    }
    if (p.row_dot.data && out[0]) {
      alignas(64) T library[kPiece];
      copy_in<T>(p.space, p.row_dot, piece, inputs.scratch);
      if (p.library.data) {
        copy_in<T>(p.space, p.library, piece, library);
      } else {
        fill_with(T(0), library, n);
      }
      through_softmax(inputs.in[0], library, inputs.scratch, out[0], n);
    }
    for (int k = 0; k < L::kInputs; ++k) {
      if (!out[k]) continue;
      if (masked) weigh<true, false>(inputs.mask, inputs.mask, out[k], n);
      store<S>(p.space, *to[k], piece, out[k], results[k]);
    }
  }

  // Sets `out[k]` to where the gradient of input k is computed: in its tensor if the piece is dense
  // there, otherwise in `results[k]`.
  VAE_FUSED_HD void place(const NllBackwardParams& p, const Piece& piece, const Operand* const* to,
                          const bool* needed, T** out) {
    Prefetcher prefetcher(kPiece * sizeof(S));
    for (int k = 0; k < L::kInputs; ++k) {
      out[k] = needed[k] ? target<S>(p.space, *to[k], piece, results[k], prefetcher) : nullptr;
    }
  }
};

// Writes the gradients and the partial sums of shared parameters. A sum by column has `columns`
// partial sums for each group of rows. A sum by row has one partial sum for each row in each tile
// of columns. `partials` contains the sums of `second`, then those of `third`.
template <class L, typename S>
void backward_tiles(void* context, int64_t begin, int64_t end) {
  using T = arithmetic_t<S>;
  const auto& task = *static_cast<const LikelihoodTask<NllBackwardParams>*>(context);
  const NllBackwardParams& p = task.params;
  const auto& o = task.options_of(T{});
  BackwardPiece<L, S> work(p);
  T* out[L::kInputs];
  const Operand* to[L::kInputs] = {&p.grad_output};
  if constexpr (L::kInputs > 2) to[1] = &p.grad_second;
  if constexpr (L::kInputs > 3) to[2] = &p.grad_third;
  to[kTarget<L>] = &p.grad_target;
  const bool sums[] = {p.sum_second.data != nullptr, p.sum_third.data != nullptr};
  bool needed[L::kInputs];
  for (int k = 0; k < L::kInputs; ++k) {
    needed[k] = to[k]->data || (k > 0 && k < kTarget<L> && sums[k - 1]);
  }
  if (!task.partials) {
    const int64_t length = row_of_pieces(p.space.size[p.space.ndim - 1]);
    for (int64_t t = begin; t < end; ++t) {
      const Tile tile = tile_at(p.space, t);
      double* const total = task.total_of(t);
      for (int at = 0; at < tile.n;) {
        const Piece piece = piece_of(tile, at, length);
        work.place(p, piece, to, needed, out);
        work.run(p, o, piece, to, out, total);
        at += piece.n;
      }
    }
    return;
  }
  const Matrix matrix(p.space, kTaskShape);
  const Operand* const summed[] = {&p.sum_second, &p.sum_third};
  SharedSums<T> shared[2];
  for (int64_t t = begin; t < end; ++t) {
    const int64_t group = t / matrix.column_tiles, part = t % matrix.column_tiles;
    const int64_t first = part * kColumnsOfTask, row = group * matrix.rows_of_task;
    const int columns = static_cast<int>(
        matrix.columns - first < kColumnsOfTask ? matrix.columns - first : kColumnsOfTask);
    const int64_t rows =
        matrix.rows - row < matrix.rows_of_task ? matrix.rows - row : matrix.rows_of_task;
    double* const total = task.total_of(t);
    for (int k = 0; k < 2; ++k) shared[k].begin(p.space, *summed[k], columns);
    for (int64_t r = row; r < row + rows; ++r) {
      const Tile line{r * matrix.columns + first, r, columns, 1};
      for (int at = 0; at < columns; at += kPiece) {
        const Piece piece = piece_of(line, at);
        work.place(p, piece, to, needed, out);
        work.run(p, o, piece, to, out, total);
        for (int k = 1; k < kTarget<L>; ++k) {
          SharedSums<T>& s = shared[k - 1];
          if (s.by_column) add_to(out[k], s.recent + at, piece.n);
          if (s.by_row) s.row_sum += sum(out[k], piece.n);
        }
      }
      double* partials = task.partials;
      for (int k = 0; k < 2; ++k) {
        SharedSums<T>& s = shared[k];
        const bool is_last = r + 1 == row + rows;
        if (s.by_column) {
          if (is_last || (r - row) % kRowsOfSum == kRowsOfSum - 1) {
            flush(s.recent, s.total, columns);
          }
          if (is_last) {
            double* const to_group = partials + group * matrix.columns + first;
            for (int c = 0; c < columns; ++c) to_group[c] = s.total[c];
          }
          partials += matrix.row_groups * matrix.columns;
        }
        if (s.by_row) {
          partials[r * matrix.column_tiles + part] = s.row_sum;
          s.row_sum = 0;
          partials += matrix.rows * matrix.column_tiles;
        }
      }
    }
  }
}

// Sums the gradients of the log mean over each row of the space.
template <class L, typename S>
void dot_tiles(void* context, int64_t begin, int64_t end) {
  using T = arithmetic_t<S>;
  const auto& task = *static_cast<const LikelihoodTask<NllBackwardParams>*>(context);
  const NllBackwardParams& p = task.params;
  BackwardPiece<L, S> work(p);
  for (int64_t t = begin; t < end; ++t) {
    const Tile tile = tile_at(p.space, t);
    for (int r = 0; r < tile.rows; ++r) {
      const Tile row = row_of(tile, r);
      double total = 0;
      for (int at = 0; at < row.n; at += kPiece) {
        const Piece piece = piece_of(row, at);
        const TermGrads<T> grads = work.read(p, piece, false);
        T* out[L::kInputs] = {work.results[0]};
        for (int k = 1; k < L::kInputs; ++k) out[k] = nullptr;
        adjoints<L, false>(task.options_of(T{}), work.inputs.in, grads, out,
                           static_cast<T*>(nullptr), piece.whole());
        if (p.observations.mask.data) {
          weigh<true, false>(work.inputs.mask, work.inputs.mask, out[0], piece.whole());
        }
        total += sum(out[0], piece.n);
      }
      task.partials[part_of(p.space, row, t)] = total;
    }
  }
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
