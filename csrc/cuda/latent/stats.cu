// Computes the statistics of a batch in one launch. A thread block iterates over the lines of a
// task, with one thread per element of a line. The last block of the launch adds up the sums of all
// groups.
//
// Bytes per float element: 8 read. The loads of a line are coalesced, whichever dimensions are
// summed.
#include "cuda/latent/gaussians.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tickets.cuh"
#include "params/latent_stats.h"

namespace vae_fused::cuda {
namespace {

constexpr int kLinesOfSum = 8;  // a thread sums this many lines in T, and adds these sums in double
static_assert(StatsTasks::kCudaLine == kThreads);

// The columns and lines of a task.
struct StatsBlock {
  int64_t group, first, begin, end;  // the lines are [begin, end)
  int columns, width;                // width: elements per line

  // A launch has fewer than 2^31 blocks, so 32 bits are enough. A 64-bit division would be a
  // function call.
  __device__ __forceinline__ StatsBlock(const StatsTasks& tasks, uint32_t t) {
    const uint32_t parts = static_cast<uint32_t>(tasks.parts);
    group = t / parts;
    first = (t % parts) * tasks.part;
    const int64_t rest = tasks.cols - first;
    columns = static_cast<int>(rest < tasks.part ? rest : tasks.part);
    width = columns * static_cast<int>(tasks.rows_of_line);
    begin = group * tasks.lines_of_task;
    end = begin + tasks.lines_of_task < tasks.lines ? begin + tasks.lines_of_task : tasks.lines;
  }
};

template <typename S>
class StatsElement {
  using T = arithmetic_t<S>;
  using Options = OptionsOnDevice<T>;

 public:
  __device__ __forceinline__ StatsElement(const StatsParams& p, const Options& options)
      : p_(p), options_(options), weights_(weights_of(options)) {}

  // The origin of the sums of means: the first unmasked mean if it is finite, otherwise 0.
  __device__ __forceinline__ double shift() const { return static_cast<double>(shift_); }

  // Adds the values of element e. The sums of means and squares are relative to the shift.
  __device__ __forceinline__ void add(int64_t e, T (&sums)[math::kStats]) {
    GaussianStep<S, Access::kScalar, Options, false> step;
    const Span<true> span = read(step, e);
    if (!step.counts(p_.gaussians, span, 0, 0)) return;
    math::Posterior<T> q[1];
    math::Prior<T> prior[1];
    step.template compute<true>(p_.gaussians, options_, 0, true, q, prior);
    T mu[1], raw[1];
    widen<Access::kScalar, true, 1>(step.mu, 0, mu);
    widen<Access::kScalar, true, 1>(step.raw, 0, raw);
    if (!has_shift_ && math::is_not_finite(q[0].mu, q[0].mu) == T(0)) shift_ = q[0].mu;
    has_shift_ = true;
    const T delta = q[0].mu - shift_;
    sums[math::kKlStat] +=
        math::kl_times_two(weights_, false, math::relative(options_, q[0], prior[0]));
    sums[math::kMean] += delta;
    sums[math::kSquares] += delta * delta;
    sums[math::kClamped] += math::is_clamped(options_.posterior, raw[0]);
    sums[math::kNotFinite] += math::is_not_finite(mu[0], raw[0]);
    sums[math::kCount] += T(1);
  }

 private:
  template <class Step>
  __device__ __forceinline__ Span<true> read(Step& step, int64_t e) const {
    const Span<true> span{e, 0, 1};
    const int64_t* strides[kSlots];
    int64_t at[kSlots];
    gaussian_strides<Options>(p_, strides);
    locate<S, Access::kScalar, false>(p_.space, strides, e, at);
    step.load(p_.space, p_.gaussians, at, span, true, true);
    return span;
  }

  const StatsParams& p_;
  const Options& options_;
  weights_t<Options> weights_;
  T shift_ = 0;
  bool has_shift_ = false;
};

// Writes the statistics of column c.
template <typename T>
__device__ __forceinline__ void write(const StatsParams& p, int64_t c,
                                      const double (&sums)[math::kStats]) {
  const math::Moments all{sums[math::kCount], sums[math::kMean], sums[math::kSquares]};
  const auto stats = math::stats_of<T>(sums[math::kKlStat], all);
  static_cast<T*>(p.kl)[c] = stats.kl;
  static_cast<T*>(p.mean)[c] = stats.mean;
  static_cast<T*>(p.variance)[c] = stats.variance;
  p.clamped[c] = static_cast<int64_t>(sums[math::kClamped]);
  p.non_finite[c] = static_cast<int64_t>(sums[math::kNotFinite]);
}

// Adds up `n` groups, where at(k, i) is sum k of group i. An aligned group of 2^log_width lanes
// shares the work, and all lanes return the result.
template <class At>
__device__ __forceinline__ void merge(int64_t n, int lane, int log_width, const At& at,
                                      double (&sums)[math::kStats]) {
  const int width = 1 << log_width;
  VAE_FUSED_UNROLL
  for (int k = 0; k < math::kStats; ++k) sums[k] = 0;
  for (int64_t i = lane; i < n; i += width) {
    const double count = at(math::kCount, i);
    sums[math::kKlStat] += at(math::kKlStat, i);
    sums[math::kMean] += count == 0 ? 0.0 : count * at(math::kMean, i);
    sums[math::kClamped] += at(math::kClamped, i);
    sums[math::kNotFinite] += at(math::kNotFinite, i);
    sums[math::kCount] += count;
  }
  VAE_FUSED_UNROLL
  for (int k = 0; k < math::kStats; ++k) sums[k] = group_sum(sums[k], log_width);
  if (sums[math::kCount] != 0) sums[math::kMean] /= sums[math::kCount];
  double squares = 0;
  for (int64_t i = lane; i < n; i += width) {
    const math::Moments moments_of_group{at(math::kCount, i), at(math::kMean, i),
                                         at(math::kSquares, i)};
    squares += math::squares_around(moments_of_group, sums[math::kMean]);
  }
  sums[math::kSquares] = group_sum(squares, log_width);
}

// Adds up the groups of all columns. One thread works on each column, or one warp if there are
// fewer columns than threads.
template <typename T>
__device__ void finish(const StatsParams& p) {
  const int64_t cols = p.tasks.cols, groups = p.tasks.groups;
  const int log_width = cols < kThreads ? 5 : 0;
  const int lane = threadIdx.x & ((1 << log_width) - 1);
  // Every lane must take part in the shuffles, even if it has no column.
  for (int64_t first = 0; first < cols; first += kThreads >> log_width) {
    const int64_t c = first + (threadIdx.x >> log_width);
    const auto at = [&](int k, int64_t g) {
      return __ldcg(p.partials + (k * groups + g) * cols + c);
    };
    double sums[math::kStats];
    merge(c < cols ? groups : 0, lane, log_width, at, sums);
    if (lane == 0 && c < cols) write<T>(p, c, sums);
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Kernel::kStats, S, Access::kScalar>)
    stats_kernel(const __grid_constant__ StatsParams p,
                 const __grid_constant__ OptionsOnDevice<arithmetic_t<S>> options, int ticket) {
  using T = arithmetic_t<S>;
  __shared__ double line_sums[math::kStats][kThreads];
  const StatsTasks& tasks = p.tasks;
  const StatsBlock block(tasks, blockIdx.x);
  const int thread = threadIdx.x;
  double sums[math::kStats] = {};
  if (thread < block.width) {
    StatsElement<S> element(p, options);
#pragma unroll 1
    for (int64_t begin = block.begin; begin < block.end; begin += kLinesOfSum) {
      T recent[math::kStats] = {};
#pragma unroll 1
      for (int64_t line = begin; line < begin + kLinesOfSum && line < block.end; ++line) {
        const int64_t row = line * tasks.rows_of_line, rest = tasks.rows - row;
        // The last line may be partial, which leaves some threads without an element.
        if (rest < tasks.rows_of_line && thread >= static_cast<int>(rest) * block.columns) break;
        element.add(row * tasks.cols + block.first + thread, recent);
      }
      VAE_FUSED_UNROLL
      for (int k = 0; k < math::kStats; ++k) sums[k] += static_cast<double>(recent[k]);
    }
    const math::Moments moments =
        math::moments(sums[math::kCount], element.shift(), sums[math::kMean], sums[math::kSquares]);
    sums[math::kMean] = moments.mean;
    sums[math::kSquares] = moments.squares;
  }
  VAE_FUSED_UNROLL
  for (int k = 0; k < math::kStats; ++k) line_sums[k][thread] = sums[k];
  __syncthreads();
  if (thread < block.columns) {
    const auto at = [&](int k, int64_t row) {
      return line_sums[k][thread + static_cast<int>(row) * block.columns];
    };
    merge(tasks.rows_of_line, 0, 0, at, sums);
    const int64_t column = block.first + thread;
    if (tasks.groups == 1) {
      write<T>(p, column, sums);
    } else {
      VAE_FUSED_UNROLL
      for (int k = 0; k < math::kStats; ++k) {
        p.partials[(k * tasks.groups + block.group) * tasks.cols + column] = sums[k];
      }
    }
  }
  if (ticket != kNoTicket && last_block(ticket)) finish<T>(p);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_stats_kernel(const __grid_constant__ StatsParams p) {
  finish<T>(p);
}

template <typename S>
cudaError_t stats_as(const WithScalars<StatsParams>& p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  const bool finishes = p.tasks.groups > 1;
  int ticket = kNoTicket;
  cudaError_t error = finishes ? ticket_slot(stream, &ticket) : cudaSuccess;
  if (error != cudaSuccess) return error;
  error = launch(stats_kernel<S>, p.tasks.tasks(), stream, p,
                 options_as<T, false>(p.gaussians.options, p.scalars), ticket);
  if (error != cudaSuccess || !finishes || ticket != kNoTicket) return error;
  return launch(finish_stats_kernel<T>, 1, stream, p);
}

}  // namespace

int stats(const WithScalars<StatsParams>& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return stats_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace vae_fused::cuda
