// Small kernels that test the emulator itself, in which faults can be planted, and probes of CUDA
// kernel internals that calls do not expose.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "params/latent.h"

namespace probes {

enum class Fault : int {
  kNone,
  kMissingBarrier,       // shared memory read before the other warp has written it
  kMissingSyncwarp,      // shared memory exchanged within a warp that is assumed to run in lockstep
  kMissingReleaseFence,  // the ticket is drawn before the partial sum is visible
  kMissingAcquireFence,  // the last block reads partial sums without a fence after the ticket
  kOffByOne,             // the tail reads one element too many
  kSharedOverrun,        // a read of one element too many from shared memory, through a pointer
  kMisaligned,           // a 16-byte load from a 4-byte aligned address
  kDeadlock,             // half waits at a barrier, the other half at a shuffle with the first half
  kDivergentBarrier,     // two halves of a block at two different barriers
  kAbsentLane,           // a shuffle from a lane that has exited
};

constexpr int kSumBlock = 64;

// Sets out = sum of x[0 .. n). `partials` is [grid]. `ticket` is 0 before and after each launch.
cudaError_t sum(Fault fault, const float* x, int n, float* partials, unsigned int* ticket,
                float* out, int grid, cudaStream_t stream);

// Computes warp operations with a mask and a width in each thread of a block:
//   out: [threads, 8] = shfl(source 1), up 1, down 1, xor 1, ballot(odd), any(lane 3), all(odd),
//   lane
cudaError_t warp(int threads, int width, uint32_t* out);

// Sets out[thread] to the number of threads at a barrier after all threads with thread % 3 == 0
// have exited.
cudaError_t early_exit(int threads, int32_t* out);

// Writes the indices of blocks in the order in which they ran to `order`, which is
// [grid.x * grid.y * grid.z]. `count` must be 0.
cudaError_t order(dim3 grid, uint32_t* order, uint32_t* count, cudaStream_t stream);

// The functions of 16-bit kernels that use hardware approximations: n normals, where n is a
// multiple of 4, and [e^(x / 2), e^x] of n values.
void coarse_normals(uint64_t seed, float* out, int64_t n);
void coarse_exponentials(const float* x, float* out, int64_t n);

// The kernel choice for a forward call with a KL and noise from a key: see cuda/select.cuh.
struct KernelChoice {
  const char* access;
  bool is_default, has_fast_path;
};
KernelChoice select_kernel(vae_fused::ForwardParams& params);

// Applies the conversions of the shadow headers to n values.
void to_half(const float* x, uint16_t* out, int64_t n);
void from_half(const uint16_t* x, float* out, int64_t n);
void to_bfloat16(const float* x, uint16_t* out, int64_t n);
void from_bfloat16(const uint16_t* x, float* out, int64_t n);

}  // namespace probes
