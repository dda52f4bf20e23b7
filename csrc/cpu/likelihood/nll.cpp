// The CPU kernels of the likelihood family: the work before and after the tiles.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/combine.h"
#include "cpu/likelihood/kl_term.h"
#include "cpu/likelihood/tasks.h"
#include "math/storage.h"

namespace vae_fused::cpu {
namespace {

template <typename Params>
int index_of(const Params& params) {
  return static_cast<int>(params.observations.kind);
}

// Adds, in order, the partial sums that the backward tasks have written for a parameter, and stores
// the totals through the operand, whose strides are 0 along the broadcast dimensions. Returns a
// pointer to the next parameter's partial sums.
const double* combine_shared(const Space& space, const Matrix& matrix, const Operand& operand,
                             const double* partials) {
  if (!operand.data) return partials;
  double* const out = static_cast<double*>(operand.data);
  const int inner = space.ndim - 1;
  if (operand.stride[inner] != 0) {
    for (int64_t c = 0; c < matrix.columns; ++c) {
      double total = 0;
      for (int64_t g = 0; g < matrix.row_groups; ++g) total += partials[g * matrix.columns + c];
      out[c * operand.stride[inner]] = total;
    }
    return partials + matrix.row_groups * matrix.columns;
  }
  // Several rows may be added to the same value of `out`, which is initially 0.
  int64_t coordinate[kMaxDims] = {}, offset = 0;
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t t = 0; t < matrix.column_tiles; ++t) out[offset] += *partials++;
    for (int d = inner - 1; d >= 0; --d) {
      offset += operand.stride[d];
      if (++coordinate[d] < space.size[d]) break;
      offset -= coordinate[d] * operand.stride[d];
      coordinate[d] = 0;
    }
  }
  return partials;
}

// A buffer to multiply by a factor.
struct ScaleTask {
  const GradientBuffers::Buffer& buffer;
  double factor;
};

template <typename S>
void scale(const ScaleTask& task, int64_t begin, int64_t end) {
  using T = math::arithmetic_t<S>;
  S* const data = static_cast<S*>(task.buffer.data);
  for (int64_t i = begin; i < end; ++i) {
    math::narrow(static_cast<T>(task.factor) * math::widen(data[i]), data[i]);
  }
}

void scale_tiles(void* context, int64_t begin, int64_t end) {
  const ScaleTask& task = *static_cast<const ScaleTask*>(context);
  const int64_t last = std::min(end * kTile, task.buffer.n);
  switch (task.buffer.dtype) {
    case DType::kFloat32:
      return scale<float>(task, begin * kTile, last);
    case DType::kFloat64:
      return scale<double>(task, begin * kTile, last);
    case DType::kFloat16:
      return scale<math::Half>(task, begin * kTile, last);
    case DType::kBFloat16:
      return scale<math::BFloat16>(task, begin * kTile, last);
  }
}

// The number of partial row sums. The parts of a row are its tiles if it has several, or the whole
// row.
int64_t parts_of(const Space& space) { return space.rows * space.tiles_per_row; }

}  // namespace

void nll(const NllParams& params, ParallelFor parallel_for) {
  LikelihoodTask<NllParams> task(params);
  const Body body = likelihood_table().nll[index_of(params)][params.dtype];
  parallel_for(params.space.tiles, kGrain, body, &task);
  combine(params.dtype, params.space, params.nll);
  add_kl(params.dtype, params.kl, params.nll.data);
}

void nll_backward(const NllBackwardParams& params, ParallelFor parallel_for) {
  const Body body = likelihood_table().backward[index_of(params)][params.dtype];
  const bool has_sums = params.sum_second.data || params.sum_third.data;
  const Matrix matrix(params.space, kTaskShape);
  const int64_t tasks = has_sums ? matrix.tasks() : params.space.tiles;
  std::vector<double> partials, totals;
  if (has_sums) {
    partials.resize(matrix.partials_of(params.space, params.sum_second) +
                    matrix.partials_of(params.space, params.sum_third));
  }
  if (params.nll.data) totals.resize(tasks);
  LikelihoodTask<NllBackwardParams> task(params, has_sums ? partials.data() : nullptr,
                                         params.nll.data ? totals.data() : nullptr);
  parallel_for(tasks, has_sums ? 1 : kGrain, body, &task);
  if (has_sums) {
    const double* next = combine_shared(params.space, matrix, params.sum_second, partials.data());
    combine_shared(params.space, matrix, params.sum_third, next);
  }
  if (params.nll.data) {
    const double total = std::accumulate(totals.begin(), totals.end(), 0.0);
    with_arithmetic(params.dtype, [&](auto t) {
      using T = decltype(t);
      *static_cast<T*>(params.nll.data) = static_cast<T>(total);
    });
    return add_kl(params.dtype, params.kl, params.nll.data);
  }
  write_kl_gradients(params.dtype, params.kl);
}

void kl_backward(const NllBackwardParams& params, ParallelFor) {
  write_kl_gradients(params.dtype, params.kl);
}

void scale_gradients(const GradientBuffers& params, ParallelFor parallel_for) {
  write_kl_gradients(params.factor_dtype, params.kl);
  with_arithmetic(params.factor_dtype, [&](auto t) {
    const double factor = static_cast<double>(*static_cast<const decltype(t)*>(params.factor));
    if (factor == 1.0) return;
    for (const GradientBuffers::Buffer& buffer : params.buffers) {
      ScaleTask task{buffer, factor};
      parallel_for(tiles_of(buffer.n), kGrain, scale_tiles, &task);
    }
  });
}

void softmax_rows(const SoftmaxParams& params, ParallelFor parallel_for) {
  const Space& space = params.space;
  std::vector<double> partials(2 * parts_of(space));
  SoftmaxTask task{params, partials.data()};
  parallel_for(space.tiles, kGrain, likelihood_table().softmax[params.dtype], &task);
  with_arithmetic(params.dtype, [&](auto t) {
    using T = decltype(t);
    const double* part = partials.data();
    for (int64_t row = 0; row < space.rows; ++row, part += 2 * space.tiles_per_row) {
      double largest = part[0], total = 0;
      for (int64_t k = 1; k < space.tiles_per_row; ++k) largest = std::max(largest, part[2 * k]);
      for (int64_t k = 0; k < space.tiles_per_row; ++k) {
        total += std::exp(part[2 * k] - largest) * part[2 * k + 1];
      }
      const double library =
          params.library ? static_cast<double>(static_cast<const T*>(params.library)[row]) : 0.0;
      static_cast<T*>(params.row_max)[row] = static_cast<T>(largest);
      static_cast<T*>(params.row_shift)[row] = static_cast<T>(library - std::log(total));
    }
  });
}

void softmax_dot(const NllBackwardParams& params, ParallelFor parallel_for) {
  const Space& space = params.space;
  std::vector<double> partials(parts_of(space));
  LikelihoodTask<NllBackwardParams> task(params, partials.data());
  const Body body = likelihood_table().dot[index_of(params)][params.dtype];
  parallel_for(space.tiles, kGrain, body, &task);
  with_arithmetic(params.dtype, [&](auto t) {
    using T = decltype(t);
    const double* part = partials.data();
    for (int64_t row = 0; row < space.rows; ++row) {
      double total = 0;
      for (int64_t k = 0; k < space.tiles_per_row; ++k) total += *part++;
      static_cast<T*>(params.dot.data)[row] = static_cast<T>(total);
    }
  });
}

}  // namespace vae_fused::cpu
