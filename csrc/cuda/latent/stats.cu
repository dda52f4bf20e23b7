// The statistics of a batch in one launch: a block goes through the lines of a task, a thread for
// each element of a line, and the last block of the launch adds up the groups of tasks.
//
// Bytes per element, float: 8 read. The loads of a line are coalesced, whatever is summed.
#include "cuda/latent/gaussians.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tickets.cuh"
#include "params/latent_stats.h"

namespace vae_fused::cuda {
namespace {

constexpr int kSummed = math::kCount + 1;  // the sums that elements have
constexpr int kLinesOfSum = 8;             // added up in the elements' type before they are widened

// A task's columns and lines, as threads need them.
struct StatsBlock {
  int64_t group, first, begin, end;  // begin, end: of its lines
  int columns, width;                // width: elements of a line

  // A launch has fewer than 2^31 blocks. A division of 64 bits would be a call.
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
  using F = OptionsOnDevice<T>;

 public:
  __device__ __forceinline__ StatsElement(const StatsParams& p, const F& f, int64_t column)
      : p_(p), f_(f), weights_(weights_of(f)) {
    T mu[1] = {};
    GaussianStep<S, Access::kScalar, F, false> step;
    read(step, column, false);
    widen<Access::kScalar, true, 1>(step.mu, 0, mu);
    const T location = f.mu_soft_clamp == T(0)
                           ? mu[0]
                           : math::soft_clamp(mu[0], f.mu_soft_clamp, f.per_mu_soft_clamp).x;
    shift_ = math::is_not_finite(location, location) == T(0) ? location : T(0);
  }

  __device__ __forceinline__ double shift() const { return shift_; }

  // Adds the values of element e.
  __device__ __forceinline__ void add(int64_t e, T (&sums)[kSummed]) const {
    GaussianStep<S, Access::kScalar, F, false> step;
    const Span<true> span = read(step, e, true);
    if (!step.counts(p_.of, span, 0, 0)) return;
    math::Posterior<T> q[1];
    math::Prior<T> prior[1];
    step.template compute<true>(p_.of, f_, 0, true, q, prior);
    T mu[1], raw[1];
    widen<Access::kScalar, true, 1>(step.mu, 0, mu);
    widen<Access::kScalar, true, 1>(step.raw, 0, raw);
    const T delta = q[0].mu - shift_;
    sums[math::kKlStat] += math::kl_times_two(weights_, false, math::relative(f_, q[0], prior[0]));
    sums[math::kShifted] += delta;
    sums[math::kSquares] += delta * delta;
    sums[math::kClamped] += math::is_clamped(f_.posterior, raw[0]);
    sums[math::kNotFinite] += math::is_not_finite(mu[0], raw[0]);
    sums[math::kCount] += T(1);
  }

 private:
  template <class Step>
  __device__ __forceinline__ Span<true> read(Step& step, int64_t e, bool whole) const {
    const Span<true> span{e, 0, 1};
    const int64_t* strides[kSlots];
    int64_t at[kSlots];
    gaussian_strides<F>(p_, strides);
    locate<S, Access::kScalar, false>(p_.space, strides, e, at);
    step.load(p_.space, p_.of, at, span, true, whole);
    return span;
  }

  const StatsParams& p_;
  const F& f_;
  weights_t<F> weights_;
  T shift_;
};

// Adds up the groups, a warp for each column.
template <typename T>
__device__ void finish(const StatsParams& p) {
  const int64_t cols = p.tasks.cols, groups = p.tasks.groups;
  const int lane = threadIdx.x & 31;
  for (int64_t c = threadIdx.x / 32; c < cols; c += kThreads / 32) {
    double sums[math::kStats];
    VAE_FUSED_UNROLL
    for (int k = 0; k < kSummed; ++k) {
      const double* const parts = p.partials + (k * cols + c) * groups;
      sums[k] = group_sum(sum_parts(parts, groups, lane, 32), 5);
    }
    sums[math::kShift] = __ldcg(p.partials + (math::kShift * cols + c) * groups);
    if (lane != 0) continue;
    const auto stats = math::stats_of<T>(sums);
    static_cast<T*>(p.kl)[c] = stats.kl;
    static_cast<T*>(p.mean)[c] = stats.mean;
    static_cast<T*>(p.variance)[c] = stats.variance;
    p.clamped[c] = static_cast<int64_t>(sums[math::kClamped]);
    p.non_finite[c] = static_cast<int64_t>(sums[math::kNotFinite]);
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Kernel::kStats, S, Access::kScalar>)
    stats_kernel(const __grid_constant__ StatsParams p,
                 const __grid_constant__ OptionsOnDevice<arithmetic_t<S>> f, int ticket) {
  using T = arithmetic_t<S>;
  __shared__ double of_line[kSummed][kThreads];
  const StatsTasks& tasks = p.tasks;
  const StatsBlock block(tasks, blockIdx.x);
  const int thread = threadIdx.x;
  double sums[kSummed] = {}, shift = 0;
  if (thread < block.width) {
    const StatsElement<S> element(p, f, block.first + thread % block.columns);
    shift = element.shift();
#pragma unroll 1
    for (int64_t begin = block.begin; begin < block.end; begin += kLinesOfSum) {
      T recent[kSummed] = {};
#pragma unroll 1
      for (int64_t line = begin; line < begin + kLinesOfSum && line < block.end; ++line) {
        const int64_t row = line * tasks.rows_of_line, rest = tasks.rows - row;
        // Threads of a line that is not whole have nothing to add.
        if (rest < tasks.rows_of_line && thread >= static_cast<int>(rest) * block.columns) break;
        element.add(row * tasks.cols + block.first + thread, recent);
      }
      VAE_FUSED_UNROLL
      for (int k = 0; k < kSummed; ++k) sums[k] += static_cast<double>(recent[k]);
    }
  }
  VAE_FUSED_UNROLL
  for (int k = 0; k < kSummed; ++k) of_line[k][thread] = sums[k];
  __syncthreads();
  if (thread < block.columns) {
    const int64_t column = block.first + thread;
    const auto part = [&](int k) -> double& {
      return p.partials[(k * tasks.cols + column) * tasks.groups + block.group];
    };
    VAE_FUSED_UNROLL
    for (int k = 0; k < kSummed; ++k) {
      double total = 0;
      for (int j = thread; j < block.width; j += block.columns) total += of_line[k][j];
      part(k) = total;
    }
    part(math::kShift) = shift;
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
  int ticket = kNoTicket;
  cudaError_t error = ticket_slot(stream, &ticket);
  if (error != cudaSuccess) return error;
  error = launch(stats_kernel<S>, p.tasks.tasks(), stream, p,
                 options_as<T, false>(p.of.options, p.scalars), ticket);
  if (error != cudaSuccess || ticket != kNoTicket) return error;
  return launch(finish_stats_kernel<T>, 1, stream, p);
}

}  // namespace

int stats(const WithScalars<StatsParams>& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return stats_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace vae_fused::cuda
