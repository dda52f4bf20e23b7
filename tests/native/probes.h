// Small kernels that test the emulator itself, each with faults that can be planted in it, and what
// else of the CUDA kernels is not to be seen from outside.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "params/latent.h"

namespace probes {

enum class Fault : int {
  kNone,
  kMissingBarrier,       // shared memory read before the other warp has written it
  kMissingSyncwarp,      // shared memory exchanged within a warp on the strength of lockstep
  kMissingReleaseFence,  // the ticket is drawn before the partial sum is visible
  kMissingAcquireFence,  // the last block reads partial sums without a fence after the ticket
  kOffByOne,             // the tail reads one element too many
  kMisaligned,           // a 16-byte load from a 4-byte aligned address
  kDeadlock,             // half of the block waits at a barrier, half at a shuffle with them
  kDivergentBarrier,     // two halves of a block at two different barriers
  kAbsentLane,           // a shuffle from a lane that has exited
};

constexpr int kSumBlock = 64;

// out = sum of x[0 .. n). partials: [grid]; ticket: zero before the first launch, and after each.
cudaError_t sum(Fault fault, const float* x, int n, float* partials, unsigned int* ticket,
                float* out, int grid, cudaStream_t stream);

// What each thread of a block sees of warp operations with a mask and a width:
//   out: [threads, 8] = shfl(source 1), up 1, down 1, xor 1, ballot(odd), any(lane 3), all(odd),
//   lane
cudaError_t warp(int threads, int width, uint32_t* out);

// out[thread] = threads that arrive at a barrier after all with thread % 3 == 0 have exited.
cudaError_t early_exit(int threads, int32_t* out);

// order: the blocks' indices as they ran, [grid.x * grid.y * grid.z]; count: zero.
cudaError_t order(dim3 grid, uint32_t* order, uint32_t* count, cudaStream_t stream);

// What 16-bit kernels make of the hardware's approximations: normals [n, a multiple of 4], and
// [e^(x / 2), e^x] of n values.
void coarse_normals(uint64_t seed, float* out, int64_t n);
void coarse_exponentials(const float* x, float* out, int64_t n);

// Which kernel serves a forward call with a KL, and noise from a key: see cuda/select.cuh.
struct Way {
  const char* access;
  bool plain, usual;
};
Way way_of(vae_fused::ForwardParams& params);

// Conversions of the shadow headers, on n values.
void to_half(const float* x, uint16_t* out, int64_t n);
void from_half(const uint16_t* x, float* out, int64_t n);
void to_bfloat16(const float* x, uint16_t* out, int64_t n);
void from_bfloat16(const uint16_t* x, float* out, int64_t n);

}  // namespace probes
