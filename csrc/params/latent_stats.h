// The call of the latent family that computes batch statistics: see params/latent.h.
#pragma once

#include <algorithm>

#include "math/latent/stats.h"
#include "params/latent.h"

namespace vae_fused {

// The division of a call's elements into tasks. The rows of the call's space are the items of the
// batch, and its columns are the latent dimensions. A task adds one line at a time to its sums. If
// rows are short, a line consists of several whole rows. Otherwise it is a part of one row. All
// lines of a task cover the same columns. The division depends only on the shape, and therefore so
// does the order of summation.
struct StatsTasks {
  int64_t rows = 0, cols = 0;
  int64_t part = 0, parts = 0;  // columns of a part, and parts of a row
  int64_t rows_of_line = 0, lines = 0, lines_of_task = 0, groups = 0;

  StatsTasks() = default;
  // `line` is the maximum number of elements in a line. A task has at least `least` lines, or all
  // lines if there are fewer. `enough` is the number of tasks that keep a device busy.
  StatsTasks(const Space& space, int64_t line, int64_t least, int64_t enough)
      : rows(space.rows), cols(space.cols), part(std::min(cols, line)) {
    parts = (cols - 1) / part + 1;
    rows_of_line = std::min(rows, parts > 1 ? 1 : line / cols);
    lines = (rows - 1) / rows_of_line + 1;
    lines_of_task = std::min(std::max(lines * parts / enough, least), lines);
    groups = (lines - 1) / lines_of_task + 1;
  }

  // The sums and the values of a line fit into the L1 cache. 64 tasks are enough for the cores that
  // share a call.
  static constexpr int kCpuLine = 512;
  static StatsTasks for_cpu(const Space& space) { return {space, kCpuLine, 32, 64}; }

  // A line has one element for each thread of a thread block. A single thread block adds up the
  // groups of all columns, so the number of groups is limited. There are about 256 tasks, and with
  // 256 parts or more there is only one group.
  static constexpr int kCudaLine = 256;
  static StatsTasks for_cuda(const Space& space) { return {space, kCudaLine, 8, 256}; }

  VAE_FUSED_HD int64_t tasks() const { return groups * parts; }
  int64_t partials() const { return groups * math::kStats * cols; }
};

struct StatsParams {
  DType dtype = DType::kFloat32;
  Space space;
  StatsTasks tasks;
  Gaussians gaussians;
  void *kl = nullptr, *mean = nullptr, *variance = nullptr;  // [cols], of the arithmetic type
  int64_t *clamped = nullptr, *non_finite = nullptr;         // [cols]
  double* partials = nullptr;                                // [kStats, groups, cols]
};

inline math::LatentOptions<double>& options_of(StatsParams& p) { return p.gaussians.options; }

template <typename Visit>
void for_each_operand(StatsParams& p, const Visit& visit) {
  for_each_operand(p.gaussians, p.dtype, visit);
}

namespace cpu {

void stats(const WithScalars<StatsParams>& params, ParallelFor parallel_for);

}  // namespace cpu

namespace cuda {

// Performs one launch. If there are several groups and no ticket is left, it performs a second one.
int stats(const WithScalars<StatsParams>& params, void* stream);

}  // namespace cuda

}  // namespace vae_fused
