// The elements of a call as a matrix whose columns are the innermost dimension of the space. The
// matrix is cut into tasks, which sum the gradients of values shared by rows or by columns.
#pragma once

#include "iteration/space.h"

namespace vae_fused {

// A task has up to `columns` columns and `rows_of_task` rows. The number of rows starts at
// `max_rows` and is halved, down to `min_rows`, until there are `min_tasks` tasks. The number
// depends only on the shape, and therefore so does the order of summation.
struct TaskShape {
  int64_t columns, min_rows, max_rows, min_tasks;
};

struct Matrix {
  int64_t rows, columns, columns_of_task, rows_of_task, row_groups, column_tiles;

  Matrix(const Space& space, const TaskShape& shape)
      : rows(1),
        columns(space.size[space.ndim - 1]),
        columns_of_task(shape.columns),
        rows_of_task(shape.max_rows) {
    for (int d = 0; d + 1 < space.ndim; ++d) rows *= space.size[d];
    column_tiles = (columns + columns_of_task - 1) / columns_of_task;
    const auto groups = [&] { return (rows + rows_of_task - 1) / rows_of_task; };
    while (rows_of_task > shape.min_rows && groups() * column_tiles < shape.min_tasks) {
      rows_of_task /= 2;
    }
    row_groups = groups();
  }

  VAE_FUSED_HD int64_t tasks() const { return row_groups * column_tiles; }

  // The number of partial sums of a parameter. Column sums need `columns` partial sums for each
  // group of rows. Row sums need one partial sum for each row and each column tile.
  int64_t partials_of(const Space& space, const Operand& operand) const {
    if (!operand.data) return 0;
    return operand.stride[space.ndim - 1] != 0 ? row_groups * columns : rows * column_tiles;
  }
};

}  // namespace vae_fused
