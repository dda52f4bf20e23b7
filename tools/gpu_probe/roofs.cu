// The roof kernels of roofs.h.
#include <algorithm>

#include "cuda/launch.cuh"
#include "math/platform.h"
#include "ptx.cuh"
#include "roofs.h"

namespace vae_fused::probe {
namespace {

using cuda::kThreads;

__device__ __forceinline__ uint4 mixed(uint4 a, const uint4& b) {
  return {a.x ^ b.x, a.y ^ b.y, a.z ^ b.z, a.w ^ b.w};
}
__device__ __forceinline__ uint4 plus(const uint4& a, uint32_t k) {
  return {a.x + k, a.y + k, a.z + k, a.w + k};
}

template <int kReads, int kWrites, int kVectors>
__global__ void __launch_bounds__(kThreads)
    roof_kernel(const __grid_constant__ Streams of, uint32_t bytes) {
  constexpr uint32_t kStep = kThreads * 16;
#pragma unroll 1
  for (uint32_t at = blockIdx.x * kStep * kVectors + threadIdx.x * 16; at < bytes;
       at += gridDim.x * kStep * kVectors) {
    uint4 in[kVectors][kReads];
    VAE_FUSED_UNROLL for (int v = 0; v < kVectors; ++v) {
      VAE_FUSED_UNROLL for (int k = 0; k < kReads; ++k) {
        in[v][k] = load_global(of.in[k] + at + v * kStep);
      }
    }
    VAE_FUSED_UNROLL for (int v = 0; v < kVectors; ++v) {
      uint4 all = in[v][0];
      VAE_FUSED_UNROLL for (int k = 1; k < kReads; ++k) all = mixed(all, in[v][k]);
      VAE_FUSED_UNROLL for (int k = 0; k < kWrites; ++k) {
        store_global(of.out[k] + at + v * kStep, plus(all, static_cast<uint32_t>(k)));
      }
    }
  }
}

template <int kReads, int kWrites, int kVectors>
Roof roof_of(int blocks) {
  return {kReads,
          kWrites,
          kVectors,
          blocks,
          [] { return cost_of(roof_kernel<kReads, kWrites, kVectors>, kThreads); },
          [](const Streams& of, int64_t bytes, int64_t grid, cudaStream_t stream) -> int {
            return cuda::launch(roof_kernel<kReads, kWrites, kVectors>, grid, stream, of,
                                static_cast<uint32_t>(bytes));
          }};
}

template <int kReads, int kWrites>
std::vector<Roof> roofs_of() {
  return {
      roof_of<kReads, kWrites, 1>(0), roof_of<kReads, kWrites, 2>(0),
      roof_of<kReads, kWrites, 4>(0), roof_of<kReads, kWrites, 1>(8),
      roof_of<kReads, kWrites, 1>(1), roof_of<kReads, kWrites, 1>(2),
      roof_of<kReads, kWrites, 1>(3), roof_of<kReads, kWrites, 1>(4),
      roof_of<kReads, kWrites, 1>(6), roof_of<kReads, kWrites, 2>(4),
      roof_of<kReads, kWrites, 2>(8), roof_of<kReads, kWrites, 4>(4),
  };
}

__global__ void __launch_bounds__(kThreads)
    differences_kernel(const uint32_t* a, const uint32_t* b, int64_t words, unsigned int* count) {
  unsigned int differ = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < words;
       i += int64_t{gridDim.x} * kThreads) {
    differ += a[i] != b[i];
  }
  if (differ) atomicAdd(count, differ);
}

}  // namespace

std::string Roof::name() const {
  std::string name = "roof " + std::to_string(reads) + "r" + std::to_string(writes) + "w, " +
                     std::to_string(vectors) + (vectors == 1 ? " vector, " : " vectors, ");
  return name + (blocks ? std::to_string(blocks) + " blocks per SM" : "full grid");
}

int Roof::launch(const Streams& of, int64_t bytes, int sms, cudaStream_t stream) const {
  const int64_t steps = bytes / (kThreads * 16 * vectors);
  if (bytes % (kThreads * 16 * 4) != 0 || bytes > int64_t{1} << 30) return cudaErrorInvalidValue;
  return launch_on(of, bytes, blocks ? std::min<int64_t>(steps, int64_t{sms} * blocks) : steps,
                   stream);
}

std::vector<Roof> roofs(int reads) {
  if (reads == 1) return roofs_of<1, 1>();
  return reads == 2 ? roofs_of<2, 1>() : roofs_of<3, 2>();
}

int count_differences(const void* a, const void* b, int64_t bytes, unsigned int* count,
                      cudaStream_t stream) {
  const int64_t words = bytes / 4;
  const int64_t blocks = std::min<int64_t>((words - 1) / kThreads + 1, 1024);
  return cuda::launch(differences_kernel, blocks, stream, static_cast<const uint32_t*>(a),
                      static_cast<const uint32_t*>(b), words, count);
}

}  // namespace vae_fused::probe
