// Computes the sums of a statistics task, for one instruction set. The forward kernel's code
// computes the KL of a piece. The other statistics are then computed from the same cache lines,
// which are already in the L1 cache.
#pragma once

#include "cpu/latent/forward_tile.h"
#include "cpu/latent/stats_tasks.h"
#include "math/latent/stats.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

constexpr int kLinesOfSum = 8;  // lines added in the arithmetic type before the sum is widened

// Replaces std::min, because the linker could merge its copies for different instruction sets.
VAE_FUSED_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Adds an element's values to the sums of its column.
template <bool masked, typename T>
VAE_FUSED_NOINLINE void add_stats(math::ScaleOptions<T> o, const T* kl, const T* mu, const T* raw,
                                  const T* location, const T* shift, const T* mask,
                                  T (*sums)[kPiece], int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> delta = get(location + j) - get(shift + j);
    const auto add = [&](int stat, Lanes<T> value) {
      T* const sum = sums[stat] + j;
      put(get(sum) + zero_if_masked<masked>(mask, j, value), sum);
    };
    add(math::kKlStat, get(kl + j));
    add(math::kMean, delta);  // this sum and the next are relative to the shift until the task ends
    add(math::kSquares, delta * delta);
    add(math::kClamped, math::is_clamped(o, get(raw + j)));
    add(math::kNotFinite, math::is_not_finite(get(mu + j), get(raw + j)));
    if constexpr (masked) add(math::kCount, Lanes<T>(T(1)));
  }
}

template <typename S, bool is_default>
class StatsWork {
  using T = arithmetic_t<S>;
  using Options = std::conditional_t<is_default, math::DefaultOptions<T>, math::LatentOptions<T>>;

 public:
  explicit StatsWork(const StatsTask& task)
      : task_(task), options_(options_of(task)), gaussians_(task.forward.gaussians, options_) {}

  void run(int64_t t) {
    const StatsTasks& tasks = task_.params.tasks;
    const int64_t group = t / tasks.parts, first = t % tasks.parts * tasks.part;
    const int columns = static_cast<int>(least(tasks.part, tasks.cols - first));
    width_ = columns * static_cast<int>(tasks.rows_of_line);
    for (int k = 0; k < math::kStats; ++k) {
      fill_with(T(0), sums_[k], kPiece);
      fill_with(0.0, totals_[k], width_);
    }
    const int64_t begin = group * tasks.lines_of_task;
    const int64_t end = least(begin + tasks.lines_of_task, tasks.lines);
    set_shift(begin * tasks.rows_of_line, least(end * tasks.rows_of_line, tasks.rows), first,
              columns);
    int64_t rows = 0;
    for (int64_t line = begin; line < end; ++line) {
      const int64_t row = line * tasks.rows_of_line;
      const int rows_here = static_cast<int>(least(tasks.rows_of_line, tasks.rows - row));
      rows += rows_here;
      add_piece({row * tasks.cols + first, columns * rows_here});
      if ((line - begin) % kLinesOfSum == kLinesOfSum - 1 || line + 1 == end) {
        for (int k = 0; k < math::kStats; ++k) flush(sums_[k], totals_[k], width_);
      }
    }
    for (int k = 0; k < math::kStats; ++k) fold(totals_[k], columns, width_);
    for (int c = 0; c < columns; ++c) {
      double& n = totals_[math::kCount][c];
      if (!task_.params.gaussians.mask.data) n = static_cast<double>(rows);
      const math::Moments moments = math::moments(
          n, static_cast<double>(shift_[c]), totals_[math::kMean][c], totals_[math::kSquares][c]);
      totals_[math::kMean][c] = moments.mean;
      totals_[math::kSquares][c] = moments.squares;
    }
    for (int k = 0; k < math::kStats; ++k) {
      double* const out = task_.params.partials + (k * tasks.groups + group) * tasks.cols + first;
      for (int c = 0; c < columns; ++c) out[c] = totals_[k][c];
    }
  }

 private:
  static Options options_of(const StatsTask& task) {
    if constexpr (is_default) {
      return math::default_options<T>(task.params.gaussians.options);
    } else {
      return task.forward_task.options_of(T{});
    }
  }

  // The shift of a column is its first unmasked, finite mean among the rows of the task. Without a
  // mask, one row usually provides all shifts. The shifts are repeated for each row of a line.
  void set_shift(int64_t begin, int64_t end, int64_t first, int columns) {
    const ForwardParams& p = task_.forward;
    for (int j = 0; j < columns; ++j) {
      shift_[j] = 0;
      has_shift_[j] = false;
    }
    int missing = columns;
    for (int64_t row = begin; row < end && missing > 0; ++row) {
      const Piece piece{row * task_.params.tasks.cols + first, columns};
      Prefetcher prefetcher(kPiece * sizeof(S));
      const T* const mu = load<S>(p.space, p.gaussians.mu, piece, mu_, prefetcher);
      if (p.gaussians.mask.data) load_mask(p.space, p.gaussians.mask, piece, mask_);
      const T* const location = located(mu, piece.whole());
      for (int j = 0; j < columns; ++j) {
        const T x = location[j];
        const bool counts = !p.gaussians.mask.data || mask_[j] != T(0);
        if (has_shift_[j] || !counts || math::is_not_finite(x, x) != T(0)) continue;
        shift_[j] = x;
        has_shift_[j] = true;
        --missing;
      }
    }
    for (int j = columns; j < width_; ++j) shift_[j] = shift_[j - columns];
  }

  const T* located(const T* mu, int n) {
    const math::LatentOptions<T>& o = task_.forward_task.options_of(T{});
    if (o.mu_soft_clamp == T(0)) return mu;
    for (int j = 0; j < n; j += kStep<T>) {
      put(math::soft_clamp(get(mu + j), o.mu_soft_clamp, o.per_mu_soft_clamp).x, location_ + j);
    }
    return location_;
  }

  void add_piece(const Piece& piece) {
    const ForwardParams& p = task_.forward;
    forward_piece<S>(p, options_, gaussians_, Key{}, piece, kl_);
    Prefetcher prefetcher(kPiece * sizeof(S));
    const T* const mu = load<S>(p.space, p.gaussians.mu, piece, mu_, prefetcher);
    const T* const raw = load<S>(p.space, p.gaussians.raw, piece, raw_, prefetcher);
    const int n = piece.whole();
    if (p.gaussians.mask.data) {
      load_mask(p.space, p.gaussians.mask, piece, mask_);
    } else if (n > piece.n) {
      fill_with(T(1), mask_, piece.n);
    }
    pad(piece, mask_);  // the last lanes of a vector belong to other columns, or to no element
    const T* const location = located(mu, n);
    with_flags(
        [&](auto masked) {
          add_stats<masked>(task_.forward_task.options_of(T{}).posterior, kl_, mu, raw, location,
                            shift_, mask_, sums_, n);
        },
        p.gaussians.mask.data || n > piece.n);
  }

  // Adds the sums to the totals in double precision, and resets the sums.
  static VAE_FUSED_NOINLINE void flush(T* sums, double* totals, int n) {
    for (int j = 0; j < n; ++j) {
      totals[j] += static_cast<double>(sums[j]);
      sums[j] = 0;
    }
  }

  // Adds the rows of a line to its first row.
  static VAE_FUSED_NOINLINE void fold(double* totals, int columns, int n) {
    for (int j = columns; j < n; j += columns) {
      for (int c = 0; c < columns; ++c) totals[c] += totals[j + c];
    }
  }

  const StatsTask& task_;
  Options options_;
  GaussianPiece<Options, false> gaussians_;
  int width_ = 0;  // elements per line
  alignas(64) T kl_[kPiece], mu_[kPiece], raw_[kPiece], location_[kPiece], mask_[kPiece];
  alignas(64) T shift_[kPiece], sums_[math::kStats][kPiece];
  alignas(64) double totals_[math::kStats][kPiece];
  bool has_shift_[kPiece];
  static_assert(StatsTasks::kCpuLine == kPiece);
};

template <typename S, bool is_default>
void stats_tiles(void* context, int64_t begin, int64_t end) {
  StatsWork<S, is_default> work(*static_cast<const StatsTask*>(context));
  for (int64_t t = begin; t < end; ++t) work.run(t);
}

}  // namespace

const LatentBodies kStats = {{{stats_tiles<float, true>, stats_tiles<double, true>,
                               stats_tiles<Half, true>, stats_tiles<BFloat16, true>}},
                             {{stats_tiles<float, false>, stats_tiles<double, false>,
                               stats_tiles<Half, false>, stats_tiles<BFloat16, false>}}};

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
