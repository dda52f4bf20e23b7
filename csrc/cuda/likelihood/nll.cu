// The entry points of the likelihood family, its softmax, and the launches that finish sums.
#define VAE_FUSED_LIBM_OUT_OF_LINE

#include <algorithm>

#include "cuda/likelihood/instances.cuh"
#include "cuda/likelihood/rows.cuh"
#include "cuda/likelihood/shared_sums.cuh"
#include "cuda/likelihood/softmax_rows.cuh"

namespace vae_fused::cuda {
namespace {

// The launch after the backward kernel. Each block adds up some of the columns or values of a
// parameter.
struct Finish {
  SharedSum sum;
  int64_t blocks = 0;
  // If the sum is not by column: the number of values of the parameter, and the number of rows that
  // share each value.
  int64_t values = 0, rows_of_value = 0;
  int log_width = 0;  // 2^log_width lanes add up a value
};

struct FinishParams {
  Space space;
  Matrix matrix;
  Finish finishes[kMaxShared];
};

constexpr int kColumnsOfBlock = 32;

// Adds up 32 columns with 8 threads each. Thread i of a column adds up groups i, i + 8 and so on,
// and then one thread adds up the 8 sums.
__device__ void finish_columns(const FinishParams& p, const Finish& f, int64_t block) {
  constexpr int kParts = kThreads / kColumnsOfBlock;
  __shared__ double sums[kThreads];
  const Matrix& m = p.matrix;
  const int64_t column = block * kColumnsOfBlock + threadIdx.x % kColumnsOfBlock;
  double sum = 0;
  if (column < m.columns) {
#pragma unroll 4
    for (int64_t g = threadIdx.x / kColumnsOfBlock; g < m.row_groups; g += kParts) {
      sum += f.sum.partials[g * m.columns + column];
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kColumnsOfBlock || column >= m.columns) return;
  sum = 0;
  for (int i = threadIdx.x; i < kThreads; i += kColumnsOfBlock) sum += sums[i];
  static_cast<double*>(f.sum.out.data)[column * f.sum.out.stride[p.space.ndim - 1]] = sum;
}

// A row of the matrix, and the offset in f.sum.out of the sum that includes the row. `value`
// encodes the coordinates in the dimensions along which the parameter varies, and `number` encodes
// the coordinates in the other dimensions.
struct Row {
  int64_t row = 0, offset = 0;
};

__device__ Row row_of(const Space& space, const Operand& operand, int64_t value, int64_t number) {
  Row result;
  int64_t stride = 1;  // of dimension d, in rows
  for (int d = space.ndim - 2; d >= 0; --d) {
    const bool varies = operand.stride[d] != 0;
    const int64_t rest = varies ? value : number, outer = rest / space.size_divisor[d];
    const int64_t coordinate = rest - outer * space.size[d];
    if (varies) value = outer;
    if (!varies) number = outer;
    result.row += coordinate * stride;
    result.offset += coordinate * operand.stride[d];
    stride *= space.size[d];
  }
  return result;
}

__device__ void finish_values(const FinishParams& p, const Finish& f, int64_t block) {
  const int64_t tiles = p.matrix.column_tiles, parts = f.rows_of_value * tiles;
  const bool by_block = f.log_width == 8;
  const int width = 1 << f.log_width, lane = threadIdx.x & (width - 1);
  const int64_t value = (block << (8 - f.log_width)) + (threadIdx.x >> f.log_width);
  double sum = 0;
  if (value < f.values) {
    int64_t number = lane / tiles, tile = lane - number * tiles;
    for (int64_t i = lane; i < parts; i += width) {
      const Row row = row_of(p.space, f.sum.out, value, number);
      sum += f.sum.partials[row.row * tiles + tile];
      for (tile += width; tile >= tiles; tile -= tiles) ++number;
    }
  }
  sum = by_block ? sum_of_block(sum) : sum_of_lanes(sum, f.log_width);
  if (value >= f.values || lane != 0) return;
  static_cast<double*>(f.sum.out.data)[row_of(p.space, f.sum.out, value, 0).offset] = sum;
}

__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ FinishParams p) {
  const bool is_second = blockIdx.x >= p.finishes[0].blocks;
  const Finish& f = is_second ? p.finishes[1] : p.finishes[0];
  const int64_t block = is_second ? blockIdx.x - p.finishes[0].blocks : blockIdx.x;
  f.sum.by_column ? finish_columns(p, f, block) : finish_values(p, f, block);
}

Finish finish_of(const Space& space, const Matrix& matrix, const SharedSum& sum) {
  Finish f{sum};
  if (sum.by_column) f.blocks = (matrix.columns - 1) / kColumnsOfBlock + 1;
  if (!sum.by_line) return f;
  f.values = f.rows_of_value = 1;
  for (int d = 0; d + 1 < space.ndim; ++d) {
    (sum.out.stride[d] != 0 ? f.values : f.rows_of_value) *= space.size[d];
  }
  const int64_t parts = f.rows_of_value * matrix.column_tiles;
  while (f.log_width < 5 && parts > int64_t{8} << f.log_width) ++f.log_width;
  if (f.values < kThreads / 32) f.log_width = 8;
  f.blocks = (f.values - 1) / (kThreads >> f.log_width) + 1;
  return f;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    kl_backward_kernel(const __grid_constant__ KlTerm term) {
  write_kl_gradients<T>(term);
}

// The gradients that the forward launch wrote rarely need to be changed, because the factor is
// nearly always 1. Each block then exits after one load, and the grid has at most kScalingBlocks
// blocks.
constexpr int64_t kElementsOfScalingBlock = 4 * kThreads, kScalingBlocks = 2048;

template <typename S, typename T>
__device__ __forceinline__ void scale_buffer(const GradientBuffers::Buffer& buffer, T factor) {
  S* const data = static_cast<S*>(buffer.data);
  const int64_t step = int64_t{gridDim.x} * kThreads;
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < buffer.n; i += step) {
    math::narrow(static_cast<arithmetic_t<S>>(factor) * math::widen(data[i]), data[i]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale_gradients_kernel(const __grid_constant__ GradientBuffers p) {
  const T factor = *static_cast<const T*>(p.factor);
  if (blockIdx.x == 0) write_kl_gradients<T>(p.kl);
  if (factor == T(1)) return;
#pragma unroll 1
  for (int k = 0; k < kMaxBuffers; ++k) {
    const GradientBuffers::Buffer& buffer = p.buffers[k];
    if (buffer.n == 0) continue;
    switch (buffer.dtype) {
      case DType::kFloat32:
        scale_buffer<float>(buffer, factor);
        break;
      case DType::kFloat64:
        scale_buffer<double>(buffer, factor);
        break;
      case DType::kFloat16:
        scale_buffer<math::Half>(buffer, factor);
        break;
      case DType::kBFloat16:
        scale_buffer<math::BFloat16>(buffer, factor);
        break;
    }
  }
}

// Calls visit(S{}): see with_storage. Builds with sanitizers have only the float kernels, because
// compiling the kernels of one dtype takes half a minute in these builds.
template <typename Visit>
int with_dtype(DType dtype, const Visit& visit) {
#if defined(VAE_FUSED_FLOAT_LIKELIHOODS)
  return dtype == DType::kFloat32 ? visit(float{}) : cudaErrorInvalidValue;
#else
  return with_storage(dtype, visit);
#endif
}

}  // namespace

cudaError_t combine_shared_sums(const Space& space, const SumPlan& plan, cudaStream_t stream) {
  FinishParams p{space, plan.matrix, {}};
  for (int k = 0; k < kMaxShared; ++k) p.finishes[k] = finish_of(space, plan.matrix, plan.sums[k]);
  return launch(finish_kernel, p.finishes[0].blocks + p.finishes[1].blocks, stream, p);
}

cudaError_t launch_epilogue(DType dtype, const RowEpilogue& epilogue, int ticket,
                            cudaStream_t stream) {
  if (!epilogue.is_needed() || ticket != kNoTicket) return cudaSuccess;
  return dtype == DType::kFloat64 ? launch(end_rows_kernel<double>, 1, stream, epilogue)
                                  : launch(end_rows_kernel<float>, 1, stream, epilogue);
}

int nll(const NllParams& params, void* stream) {
  return with_dtype(params.dtype, [&](auto s) {
    return nll_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

int nll_backward(const NllBackwardParams& params, void* stream) {
  return with_dtype(params.dtype, [&](auto s) {
    using S = decltype(s);
    const auto on = static_cast<cudaStream_t>(stream);
    if constexpr (kHasValues<S>) {
      if (params.nll.data) return nll_and_backward_as<S>(params, on);
    }
    return nll_backward_as<S>(params, on);
  });
}

int softmax_rows(const SoftmaxParams& params, void* stream) {
  return with_dtype(params.dtype, [&](auto s) {
    return softmax_rows_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

int softmax_dot(const NllBackwardParams& params, void* stream) {
  return with_dtype(params.dtype, [&](auto s) {
    return softmax_dot_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

int kl_backward(const NllBackwardParams& params, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  return params.dtype == DType::kFloat64 ? launch(kl_backward_kernel<double>, 1, s, params.kl)
                                         : launch(kl_backward_kernel<float>, 1, s, params.kl);
}

int scale_gradients(const GradientBuffers& params, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  int64_t n = 1;
  for (const GradientBuffers::Buffer& buffer : params.buffers) n = std::max(n, buffer.n);
  const int64_t blocks = std::min<int64_t>((n - 1) / kElementsOfScalingBlock + 1, kScalingBlocks);
  return params.factor_dtype == DType::kFloat64
             ? launch(scale_gradients_kernel<double>, blocks, s, params)
             : launch(scale_gradients_kernel<float>, blocks, s, params);
}

int64_t value_partials_of(const NllBackwardParams& params) {
  return params.dtype == DType::kFloat64 ? units_of<double>(params, SumPlan(params))
                                         : units_of<float>(params, SumPlan(params));
}

int64_t partials_of(const NllBackwardParams& params) {
  const SumPlan plan(params);
  return plan.matrix.partials_of(params.space, params.sum_second) +
         plan.matrix.partials_of(params.space, params.sum_third);
}

}  // namespace vae_fused::cuda
