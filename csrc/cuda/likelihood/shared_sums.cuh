// Defines how the gradients of broadcast parameters are summed: the tasks into which the backward
// kernel divides the elements, and the partial sums that the next launch adds up.
#pragma once

#include "cuda/likelihood/piece.cuh"
#include "iteration/matrix.h"
#include "params/likelihood.h"

namespace vae_fused::cuda {

constexpr int kMaxShared = 2;        // parameters that may be broadcast
constexpr int kColumnsOfTask = 128;  // divides kThreads, so that each thread has one column

// The partial sums of a parameter: see Matrix::partials_of.
struct SharedSum {
  bool by_column = false, by_line = false;
  double* partials = nullptr;
  Operand out;
};

struct SumPlan;

// The elements of a task, which a thread block computes in pieces of several lines. Values that
// only some pieces need are recomputed from the task index, because registers are scarce.
struct Task {
  int64_t row, column;      // the first row and column
  int rows, columns, done;  // done: rows of earlier pieces

  __device__ __forceinline__ Piece next(const SumPlan& plan) const;
};

struct SumPlan {
  bool is_present = false;
  int log_width = 0;  // a line has 2^log_width slots
  int lines = 0;      // lines per piece
  Matrix matrix;
  Divisor column_tiles_divisor;
  SharedSum sums[kMaxShared];

  explicit SumPlan(const NllBackwardParams& p);

  __device__ __forceinline__ int64_t group_of(int64_t t) const { return t / column_tiles_divisor; }
  __device__ __forceinline__ int64_t part_of(int64_t t) const {
    return t - group_of(t) * matrix.column_tiles;
  }
  __device__ __forceinline__ Task task(int64_t t) const {
    const int64_t row = group_of(t) * matrix.rows_of_task;
    const int64_t column = part_of(t) * matrix.columns_of_task;
    const int64_t rows = matrix.rows - row, columns = matrix.columns - column;
    return {row, column, static_cast<int>(rows < matrix.rows_of_task ? rows : matrix.rows_of_task),
            static_cast<int>(columns < matrix.columns_of_task ? columns : matrix.columns_of_task),
            0};
  }

 private:
  static bool is_by_column(const Space& space, const Operand& operand) {
    return operand.data && operand.stride[space.ndim - 1] != 0;
  }
  static TaskShape shape_of(const NllBackwardParams& p);
};

__device__ __forceinline__ Piece Task::next(const SumPlan& plan) const {
  const int rest = rows - done;
  const int64_t pitch = plan.matrix.columns;
  return {(row + done) * pitch + column, pitch, plan.log_width,
          rest < plan.lines ? rest : plan.lines, columns};
}

// The number of slots per line is a power of two. A task has up to four pieces.
inline TaskShape SumPlan::shape_of(const NllBackwardParams& p) {
  const int64_t slots = p.dtype == DType::kFloat64 ? kSlots<double> : kSlots<float>;
  const bool by_column = is_by_column(p.space, p.sum_second) || is_by_column(p.space, p.sum_third);
  const int64_t most = by_column ? kColumnsOfTask : slots;
  const int64_t columns = p.space.size[p.space.ndim - 1];
  int64_t width = 1;
  while (width < columns && width < most) width *= 2;
  const int64_t lines = slots / width;
  return {width, lines, by_column ? 4 * lines : lines, VAE_FUSED_ENOUGH_BLOCKS / 2};
}

inline SumPlan::SumPlan(const NllBackwardParams& p)
    : is_present(p.sum_second.data || p.sum_third.data), matrix(p.space, shape_of(p)) {
  while (int64_t{1} << log_width < matrix.columns_of_task) ++log_width;
  const bool is_double = p.dtype == DType::kFloat64;
  lines = (is_double ? kSlots<double> : kSlots<float>) >> log_width;
  column_tiles_divisor = divisor(matrix.column_tiles);
  const Operand* const operands[kMaxShared] = {&p.sum_second, &p.sum_third};
  double* partials = p.partials;
  for (int k = 0; k < kMaxShared; ++k) {
    sums[k].by_column = is_by_column(p.space, *operands[k]);
    sums[k].by_line = operands[k]->data && !sums[k].by_column;
    sums[k].partials = partials;
    sums[k].out = *operands[k];
    if (partials) partials += matrix.partials_of(p.space, *operands[k]);
  }
}

// The number of units that the thread blocks of the backward kernel compute: tasks if parameters
// are summed, and single pieces otherwise.
template <typename T>
int64_t units_of(const NllBackwardParams& p, const SumPlan& sums) {
  const int64_t pieces = (p.space.rows * p.space.cols - 1) / kSlots<T> + 1;
  return sums.is_present ? sums.matrix.tasks() : pieces;
}

// Adds up the partial sums in a second launch. See nll.cu.
cudaError_t combine_shared_sums(const Space& space, const SumPlan& plan, cudaStream_t stream);

}  // namespace vae_fused::cuda
