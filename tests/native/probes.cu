#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/latent/gaussians.cuh"
#include "math/latent/gaussian.h"
#include "math/normal.h"
#include "probes.h"

namespace probes {

namespace {

// The sanitizer's object size check follows a pointer to shared memory only into inlined code.
__device__ __forceinline__ float add_up(const float* values, int count) {
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// A sum that uses the methods of the project's kernels: grid-stride loads, warp sums with shuffles,
// sums over warps in shared memory, and sums over blocks with partial sums and a ticket.
template <Fault F>
__global__ void __launch_bounds__(kSumBlock)
    sum_kernel(const float* __restrict__ x, int n, float* partials, unsigned int* ticket,
               float* out) {
  __shared__ float warp_sum[kSumBlock / 32];
  __shared__ float lane_value[kSumBlock];
  __shared__ bool last;
  const int thread = static_cast<int>(threadIdx.x),
            first = static_cast<int>(blockIdx.x) * kSumBlock;
  const int step = static_cast<int>(gridDim.x) * kSumBlock;
  float value = 0;
  for (int i = first + thread; i < n + (F == Fault::kOffByOne); i += step) value += __ldg(x + i);
  if (F == Fault::kMisaligned && thread == 0) {
    value += reinterpret_cast<const float4*>(x + 1)->x;
    value -= x[1];
  }
  if (F == Fault::kDeadlock) {
    if (thread % 2) __syncthreads();
  }
  if (F == Fault::kDivergentBarrier) {
    if (thread < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (F == Fault::kAbsentLane && thread % 32 == 31) return;
  for (int bit = 16; bit > 1; bit /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, bit);
  // The last step of the butterfly uses shared memory.
  lane_value[thread] = value;
  if (F != Fault::kMissingSyncwarp) __syncwarp();
  value += lane_value[thread ^ 1];
  if (thread % 32 == 0) warp_sum[thread / 32] = value;
  if (F != Fault::kMissingBarrier) __syncthreads();
  if (thread == 0) {
    partials[blockIdx.x] = add_up(warp_sum, kSumBlock / 32 + (F == Fault::kSharedOverrun));
    if (F != Fault::kMissingReleaseFence) __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    if (F != Fault::kMissingAcquireFence) __threadfence();
  }
  __syncthreads();
  if (!last || thread != 0) return;
  float total = 0;
  for (unsigned int i = 0; i < gridDim.x; ++i) total += __ldcg(partials + i);
  *out = total;
}

__global__ void warp_kernel(int width, uint32_t* out) {
  const unsigned int lane = threadIdx.x % 32;
  // Each segment has its own mask, so that a warp has several rendezvous at a time.
  const unsigned int segment = width == 32 ? 0xFFFFFFFFu : ((1u << width) - 1);
  const unsigned int mask = segment << (lane / width * width);
  uint32_t* const row = out + 8 * threadIdx.x;
  row[0] = __shfl_sync(mask, threadIdx.x, 1, width);
  row[1] = __shfl_up_sync(mask, threadIdx.x, 1, width);
  row[2] = __shfl_down_sync(mask, threadIdx.x, 1, width);
  row[3] = __shfl_xor_sync(mask, threadIdx.x, 1, width);
  row[4] = __ballot_sync(mask, threadIdx.x % 2);
  row[5] = static_cast<uint32_t>(__any_sync(mask, lane == 3));
  row[6] = static_cast<uint32_t>(__all_sync(mask, threadIdx.x % 2));
  row[7] = static_cast<uint32_t>(__shfl_sync(mask, static_cast<double>(lane), lane, width));
}

__global__ void early_exit_kernel(int32_t* out) {
  out[threadIdx.x] = -1;
  if (threadIdx.x % 3 == 0) return;
  out[threadIdx.x] = __syncthreads_count(1);
}

__global__ void order_kernel(uint32_t* order, uint32_t* count) {
  const uint32_t index = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  order[atomicAdd(count, 1u)] = index;
}

template <Fault F>
cudaError_t launch_sum(const float* x, int n, float* partials, unsigned int* ticket, float* out,
                       int grid, cudaStream_t stream) {
  return emu::launch(sum_kernel<F>, static_cast<unsigned>(grid), kSumBlock, 0, stream, x, n,
                     partials, ticket, out);
}

}  // namespace

cudaError_t sum(Fault fault, const float* x, int n, float* partials, unsigned int* ticket,
                float* out, int grid, cudaStream_t stream) {
  using Launch = decltype(&launch_sum<Fault::kNone>);
  constexpr Launch kLaunches[] = {
      launch_sum<Fault::kNone>,
      launch_sum<Fault::kMissingBarrier>,
      launch_sum<Fault::kMissingSyncwarp>,
      launch_sum<Fault::kMissingReleaseFence>,
      launch_sum<Fault::kMissingAcquireFence>,
      launch_sum<Fault::kOffByOne>,
      launch_sum<Fault::kSharedOverrun>,
      launch_sum<Fault::kMisaligned>,
      launch_sum<Fault::kDeadlock>,
      launch_sum<Fault::kDivergentBarrier>,
      launch_sum<Fault::kAbsentLane>,
  };
  return kLaunches[static_cast<int>(fault)](x, n, partials, ticket, out, grid, stream);
}

cudaError_t warp(int threads, int width, uint32_t* out) {
  return emu::launch(warp_kernel, 1, static_cast<unsigned>(threads), 0, nullptr, width, out);
}

cudaError_t early_exit(int threads, int32_t* out) {
  return emu::launch(early_exit_kernel, 1, static_cast<unsigned>(threads), 0, nullptr, out);
}

cudaError_t order(dim3 grid, uint32_t* order, uint32_t* count, cudaStream_t stream) {
  return emu::launch(order_kernel, grid, 1, 0, stream, order, count);
}

void coarse_normals(uint64_t seed, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += 4) {
    float block[4];
    const vae_fused::math::Seed keys(seed);
    vae_fused::math::normals<true>(vae_fused::math::philox(keys, i / 4), block);
    for (int j = 0; j < 4; ++j) out[i + j] = block[j];
  }
}
void coarse_exponentials(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float clipped[] = {vae_fused::math::clip_for_exp(x[i])};
    vae_fused::math::Exponentials<float> exps[1];
    vae_fused::math::exponentials_for<true>(clipped, exps);
    out[2 * i] = exps[0].sigma;
    out[2 * i + 1] = exps[0].excess(clipped[0]).g;
  }
}

void to_half(const float* x, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = __half_as_ushort(__float2half_rn(x[i]));
}
void from_half(const uint16_t* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = __half2float(__ushort_as_half(x[i]));
}
void to_bfloat16(const float* x, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
}
void from_bfloat16(const uint16_t* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = __bfloat162float(__ushort_as_bfloat16(x[i]));
}

KernelChoice select_kernel(vae_fused::ForwardParams& params) {
  using namespace vae_fused;
  constexpr const char* kNames[] = {"contiguous", "strided", "channels_last", "scalar"};
  cuda::CallShape call;
  call.is_default = cuda::has_default_options<ForwardParams>(params);
  call.has_rows = call.has_all_operands = call.draws_noise = true;
  KernelChoice result{};
  cuda::with_storage(params.dtype, [&](auto s) {
    const auto choice =
        cuda::select_kernel<decltype(s)>(params.space, cuda::operands_of(params), call);
    result = {kNames[static_cast<int>(choice.access)], choice.is_default, choice.has_fast_path};
    return cudaSuccess;
  });
  return result;
}

}  // namespace probes
