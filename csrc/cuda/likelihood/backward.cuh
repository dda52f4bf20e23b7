// The backward kernel computes the gradient of every input that needs one, and sums the gradients
// of broadcast parameters. It also computes the dot products of a softmax.
//
// A parameter that rows share, such as the theta of a gene, has one gradient for all of these rows.
// A thread block then computes a task of several rows in lines of up to 128 columns, in which each
// thread always has the same column. A thread sums at most eight rows in the arithmetic type before
// it adds the sum to a double, because a consumer GPU adds doubles at 1/64 of its fp32 speed. The
// gradient of a parameter that is constant along a line is summed over each line. A second, short
// launch adds up the sums of the tasks.
#pragma once

#include "cuda/likelihood/observations.cuh"
#include "cuda/likelihood/policy.cuh"
#include "cuda/likelihood/rows.cuh"
#include "cuda/likelihood/shared_sums.cuh"

namespace vae_fused::cuda {
namespace {

// The computations of a thread block.
template <class L, typename S, bool kWithValues>
class Backward {
  using T = arithmetic_t<S>;
  using Staged = BackwardInputs<L, T, kWithValues>;
  // The indices of row_dot and library, which follow the indices of the gradients.
  static constexpr int kDot = L::kInputs, kLibrary = kDot + 1, kStored = kLibrary + 1;

 public:
  __device__ __forceinline__ Backward(const NllBackwardParams& p, const KernelOptions<T>& o,
                                      bool vectors, Staged& inputs)
      : p_(p), o_(o), vectors_(vectors), inputs_(inputs) {}

  // Loads a piece and computes the terms that nonzero counts add. The dot products need only the
  // gradient of the first input, to which these terms contribute nothing.
  __device__ __forceinline__ void prepare(const Piece& piece) const {
    Inputs<L, T>& inputs = inputs_;
    stage<L, S>(p_, vectors_, piece, inputs);
    if constexpr (kCountHasGradient<L>) {
      if (!is_count(o_.kind) || !(kWithValues || needs(1))) return;
      add_counts(p_.observations, piece, inputs, [&](const T(&x)[L::kInputs], int slot) {
        if constexpr (kWithValues) inputs_.count_terms[slot] = L::count_term(o_, x);
        T dx[L::kInputs] = {};
        L::count_term_adjoint(o_, x, inputs_.factor[slot], dx);
        return dx[1];
      });
    } else if constexpr (kWithValues && L::kIsCount) {
      add_counts(p_.observations, piece, inputs,
                 [&](const T(&x)[L::kInputs], int) { return L::count_term(o_, x); });
    }
  }

  // Returns the value of an element, multiplied by the gradient of its term.
  __device__ __forceinline__ T value(int slot) const {
    T x[L::kInputs];
    inputs_at(inputs_, slot, x);
    T value = L::value(o_, x);
    if constexpr (L::kIsCount) {
      if (is_count(o_.kind) && x[kTarget<L>] != T(0)) {
        if constexpr (kCountHasGradient<L>) {
          value += inputs_.count_terms[slot];
        } else {
          value += inputs_.added[slot];
        }
      }
    }
    return p_.observations.mask.data && !inputs_.mask[slot] ? T(0) : inputs_.factor[slot] * value;
  }

  // Computes the gradients of an element. For a softmax, `through_softmax` converts the first
  // gradient later.
  __device__ __forceinline__ void adjoint(int slot, T (&dx)[L::kInputs]) const {
    T x[L::kInputs];
    inputs_at(inputs_, slot, x);
    L::adjoint(o_, x, inputs_.factor[slot], dx);
    if constexpr (kCountHasGradient<L>) {
      if (is_count(o_.kind) && needs(1) && x[kTarget<L>] != T(0)) dx[1] += inputs_.added[slot];
    }
    if (p_.observations.mask.data && !inputs_.mask[slot]) {
      VAE_FUSED_UNROLL
      for (int k = 0; k < L::kInputs; ++k) dx[k] = 0;
    }
    // `through_softmax` needs the log mean, which is stored in place of the gradient of the term.
    if (L::kIsCount && p_.row_dot.data) inputs_.factor[slot] = x[0];
  }

  // Overwrites the inputs of an element with its gradients.
  __device__ __forceinline__ void stage_grads(int slot, const T (&dx)[L::kInputs]) const {
    VAE_FUSED_UNROLL
    for (int k = 0; k < L::kInputs; ++k) inputs_.in[k][slot] = dx[k];
  }

  // Stores the gradients of a piece.
  __device__ __forceinline__ void store(const Piece& piece) const {
    const int64_t* strides[kStored];
    VAE_FUSED_UNROLL
    for (int k = 0; k < L::kInputs; ++k) strides[k] = full(k).stride;
    strides[kDot] = p_.row_dot.stride;
    strides[kLibrary] = p_.library.stride;
    for_each_step<S>(p_.space, piece, vectors_, strides, [&](int slot, const auto& at, auto v) {
      store_step<decltype(v)::value>(at, slot);
    });
  }

  // Sums the gradient of parameter k over each line. At most 32 lanes work on a line.
  __device__ __forceinline__ void sum_lines(const SumPlan& plan, int k, const Piece& piece,
                                            int64_t t, const Task& task) const {
    const int log_lanes = plan.log_width < 5 ? plan.log_width : 5, width = 1 << log_lanes;
    const int lane = threadIdx.x & (width - 1);
    for (int first = 0; first < piece.lines; first += kThreads >> log_lanes) {
      const int line = first + (threadIdx.x >> log_lanes);
      double sum = 0;
      if (line < piece.lines) {
        const T* const line_values = inputs_.in[k + 1] + (line << plan.log_width);
        for (int at = lane; at < piece.n; at += 4 * width) {
          T run = 0;
          VAE_FUSED_UNROLL
          for (int j = 0; j < 4; ++j) {
            if (at + j * width < piece.n) run += line_values[at + j * width];
          }
          sum += static_cast<double>(run);
        }
      }
      sum = sum_of_lanes(sum, log_lanes);
      if (line < piece.lines && lane == 0) {
        const int64_t row = task.row + task.done + line;
        plan.sums[k].partials[row * plan.matrix.column_tiles + plan.part_of(t)] = sum;
      }
    }
  }

 private:
  // Return the operand for the gradient of input k, and the operand for the sums of this gradient.
  __device__ __forceinline__ const Operand& full(int k) const {
    return k == 0            ? p_.grad_output
           : k == kTarget<L> ? p_.grad_target
           : k == 1          ? p_.grad_second
                             : p_.grad_third;
  }
  __device__ __forceinline__ const Operand& sum(int k) const {
    return k == 1 ? p_.sum_second : p_.sum_third;
  }
  __device__ __forceinline__ bool needs(int k) const { return full(k).data || sum(k).data; }

  template <int V>
  __device__ __forceinline__ void store_step(const int64_t (&at)[kStored], int slot) const {
    VAE_FUSED_UNROLL
    for (int k = 0; k < L::kInputs; ++k) {
      if (!full(k).data) continue;
      auto dx = *reinterpret_cast<const Pack<T, V>*>(&inputs_.in[k][slot]);
      if (L::kIsCount && k == 0 && p_.row_dot.data) through_softmax(at, slot, dx);
      Pack<S, V> pack;
      VAE_FUSED_UNROLL
      for (int j = 0; j < V; ++j) math::narrow(dx.s[j], pack.s[j]);
      store_whole(static_cast<S*>(full(k).data) + at[k], pack);
    }
  }

  // Converts gradients g of the logarithm of the mean to gradients of the logits:
  // grad_j = g_j - p_j sum_k g_k.
  template <int V>
  __device__ __forceinline__ void through_softmax(const int64_t (&at)[kStored], int slot,
                                                  Pack<T, V>& dx) const {
    Pack<T, V> dot, library{};
    read(p_.space, p_.row_dot, at[kDot], dot);
    if (p_.library.data) read(p_.space, p_.library, at[kLibrary], library);
    const auto log_mean = *reinterpret_cast<const Pack<T, V>*>(&inputs_.factor[slot]);
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) {
      const bool counts = !p_.observations.mask.data || inputs_.mask[slot + j];
      const T share = math::exp(log_mean.s[j] - library.s[j]);
      dx.s[j] = counts ? dx.s[j] - share * dot.s[j] : T(0);
    }
  }

  const NllBackwardParams& p_;
  const KernelOptions<T>& o_;
  const bool vectors_;
  Staged& inputs_;
};

// The sums of a task over a thread's rows. All elements of a thread are in one column.
template <class L, typename T>
class ColumnTotals {
  static constexpr int kParameters = kTarget<L> - 1;

 public:
  __device__ __forceinline__ void add(const T (&dx)[L::kInputs]) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < kParameters; ++k) recent_[k] += dx[k + 1];
  }

  // Adds the recent sums to the totals after every second piece. Therefore, a recent sum contains
  // the terms of at most eight rows.
  __device__ __forceinline__ void end_piece() {
    is_second_ = !is_second_;
    if (!is_second_) flush();
  }

  // Adds up the totals of the threads of each column, which are one line apart, and writes the
  // partial sums.
  __device__ __forceinline__ void end_task(const SumPlan& plan, int64_t t, const Task& task,
                                           double (&sums)[kThreads]) {
    flush();
    is_second_ = false;
    VAE_FUSED_UNROLL
    for (int k = 0; k < kParameters; ++k) {
      if (plan.sums[k].by_column) {
        sums[threadIdx.x] = total_[k];
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < task.columns) {
          double column_sum = 0;
          for (int i = threadIdx.x; i < kThreads; i += 1 << plan.log_width) column_sum += sums[i];
          const int64_t at = plan.group_of(t) * plan.matrix.columns + task.column + threadIdx.x;
          plan.sums[k].partials[at] = column_sum;
        }
        __syncthreads();
      }
      total_[k] = 0;
    }
  }

 private:
  __device__ __forceinline__ void flush() {
    VAE_FUSED_UNROLL
    for (int k = 0; k < kParameters; ++k) {
      total_[k] += static_cast<double>(recent_[k]);
      recent_[k] = 0;
    }
  }

  T recent_[kMaxShared] = {};
  double total_[kMaxShared] = {};
  bool is_second_ = false;
};

// A thread block iterates over units: tiles of rows for the dot products, tasks if parameters are
// summed, or single pieces. One loop computes the pieces of all kinds of units, so that the kernel
// contains its body only once. With kWithValues, the kernel also writes the sum of the values of
// each unit, and the last block adds up these sums.
template <typename S, class L, bool kWithValues>
__global__ void __launch_bounds__(kThreads, kMinBlocks<direction_of(kWithValues), S, L>)
    nll_backward_kernel(const __grid_constant__ NllBackwardParams p,
                        const __grid_constant__ KernelOptions<arithmetic_t<S>> o,
                        const __grid_constant__ SumPlan plan,
                        const __grid_constant__ RowDisposition disposition,
                        const __grid_constant__ bool vectors, int64_t units, int ticket) {
  using T = arithmetic_t<S>;
  __shared__ BackwardInputs<L, T, kWithValues> inputs;
  __shared__ double sums[kThreads];
  const bool is_dot = !kWithValues && p.dot.data;
  const Backward<L, S, kWithValues> backward(p, o, vectors, inputs);
  clear_list<L, T>(inputs);
  __syncthreads();
  RowTotals<T> totals(p.space, p.dot, disposition, inputs.in[0]);
  ColumnTotals<L, T> columns;
  T piece_sum = 0;
  double unit_sum = 0;
  for (int64_t t = blockIdx.x; t < units; t += gridDim.x) {
    Task task;
    int64_t first = t * kSlots<T>, end = p.space.rows * p.space.cols;
    int pieces = 1;
    if (is_dot) {
      const Tile tile = tile_of(p.space, t);
      first = tile.begin;
      end = tile.begin + tile.n;
      pieces = (tile.n - 1) / kSlots<T> + 1;
    } else if (plan.is_present) {
      task = plan.task(t);
      pieces = (task.rows - 1) / plan.lines + 1;
    }
#pragma unroll 1
    for (int i = 0; i < pieces; ++i) {
      const bool by_task = !is_dot && plan.is_present;
      const Piece piece = by_task ? task.next(plan) : flat_piece<T>(first + i * kSlots<T>, end);
      backward.prepare(piece);
      for_each_slot<T>(piece, [&](int slot) {
        if constexpr (kWithValues) piece_sum += backward.value(slot);
        T dx[L::kInputs];
        backward.adjoint(slot, dx);
        if (is_dot) {
          totals.add(piece, slot, dx[0]);
        } else {
          columns.add(dx);
          backward.stage_grads(slot, dx);
        }
      });
      __syncthreads();
      if (is_dot) {
        totals.end_piece();
        continue;
      }
      if constexpr (kWithValues) {
        unit_sum += static_cast<double>(piece_sum);
        piece_sum = 0;
      }
      columns.end_piece();
      backward.store(piece);
      if (by_task) {
#pragma unroll 1
        for (int k = 0; k < kTarget<L> - 1; ++k) {
          if (plan.sums[k].by_line) backward.sum_lines(plan, k, piece, t, task);
        }
        task.done += piece.lines;
      }
      __syncthreads();
    }
    if (is_dot) {
      totals.end_tile(t);
    } else if (plan.is_present) {
      columns.end_task(plan, t, task, sums);
    }
    if constexpr (kWithValues) {
      unit_sum = sum_of_block(unit_sum);
      if (threadIdx.x == 0) p.nll.partials[t] = unit_sum;
      unit_sum = 0;
    }
  }
  if constexpr (kWithValues) {
    if (ticket == kNoTicket || !last_block(ticket)) return;
    run_epilogue<T>(1, units, p.nll, p.kl);
  } else {
    if (is_dot) totals.end_block(ticket, KlTerm{});
    if (blockIdx.x == 0) write_kl_gradients<T>(p.kl);
  }
}

template <typename S, bool kWithValues = false>
cudaError_t launch_backward(const NllBackwardParams& p, const SumPlan& sums,
                            const RowPlan& row_plan, int64_t units, bool vectors,
                            cudaStream_t stream) {
  const auto options = kernel_options<arithmetic_t<S>>(p.observations);
  return launch_with_kind(p.observations.kind, [&](auto kind) {
    return launch(nll_backward_kernel<S, KernelKind<S, decltype(kind)>, kWithValues>,
                  row_plan.blocks, stream, p, options, sums, row_plan.disposition, vectors, units,
                  row_plan.ticket);
  });
}

}  // namespace

template <typename S>
cudaError_t nll_backward_as(NllBackwardParams p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  const bool vectors = has_vectors<S>(p.space, operands_of(p));
  p.dot = {};
  const SumPlan sums(p);
  RowPlan row_plan;
  const int64_t units = units_of<T>(p, sums);
  row_plan.blocks = (units - 1) / tiles_to_merge(units) + 1;
  const cudaError_t error = launch_backward<S>(p, sums, row_plan, units, vectors, stream);
  return error == cudaSuccess && sums.is_present ? combine_shared_sums(p.space, sums, stream)
                                                 : error;
}

template <typename S>
cudaError_t nll_and_backward_as(NllBackwardParams p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  const bool vectors = has_vectors<S>(p.space, operands_of(p));
  p.dot = {};
  const SumPlan sums(p);
  RowPlan row_plan;
  const int64_t units = units_of<T>(p, sums);
  row_plan.blocks = (units - 1) / tiles_to_merge(units) + 1;
  cudaError_t error = ticket_slot(stream, &row_plan.ticket);
  if (error != cudaSuccess) return error;
  error = launch_backward<S, true>(p, sums, row_plan, units, vectors, stream);
  if (error != cudaSuccess) return error;
  error = launch_epilogue(p.dtype, {1, units, p.nll, p.kl}, row_plan.ticket, stream);
  if (error != cudaSuccess || !sums.is_present) return error;
  return combine_shared_sums(p.space, sums, stream);
}

template <typename S>
cudaError_t softmax_dot_as(NllBackwardParams p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  p.sum_second = p.sum_third = p.grad_second = p.grad_third = p.row_dot = Operand{};
  const bool vectors = has_vectors<S>(p.space, operands_of(p));
  RowPlan row_plan;
  p.kl = {};
  cudaError_t error = plan_row_sums<T>(p.space, p.dot, p.kl, stream, row_plan);
  if (error != cudaSuccess) return error;
  error = launch_backward<S>(p, SumPlan(p), row_plan, p.space.tiles, vectors, stream);
  if (error != cudaSuccess) return error;
  const RowEpilogue epilogue{p.space.rows, parts_of(p.space), p.dot, {}};
  return launch_epilogue(p.dtype, epilogue, row_plan.ticket, stream);
}

}  // namespace vae_fused::cuda
