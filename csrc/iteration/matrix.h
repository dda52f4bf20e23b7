// The elements of a call as a matrix whose columns are the innermost dimension of the space. It is
// cut into tasks that sum the gradients of values that rows or columns share.
#pragma once

#include "iteration/space.h"

namespace vae_fused {

// A task has up to `columns` columns and `rows_of_task` rows. The number of rows starts from
// `max_rows` and is halved, down to `min_rows`, until there are `min_tasks` tasks. It depends on
// the shape alone, and therefore the order of summation does as well.
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

  // The number of partial sums of a parameter. Sums by column have `columns` partial sums for each
  // group of rows. Sums by row have one for each pair of a row and a tile of columns.
  int64_t partials_of(const Space& space, const Operand& operand) const {
    if (!operand.data) return 0;
    return operand.stride[space.ndim - 1] != 0 ? row_groups * columns : rows * column_tiles;
  }
};

}  // namespace vae_fused
