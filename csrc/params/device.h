// What a device offers to csrc/torch beside its kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vae_fused {

namespace cpu {

// Runs body(context, begin, end) over [0, n) on ATen's pool; csrc/torch passes it in.
using Body = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t n, int64_t grain, Body body, void* context);

// For memory that a kernel is about to be the first to write.
void prepare_pages(void* data, size_t bytes);

// The instruction set in use: avx512, avx2 or default. Throws std::invalid_argument if
// VAE_FUSED_CPU_CAPABILITY asks for another, or for one that is not available here.
const char* capability_name();

}  // namespace cpu

namespace cuda {

const char* error_string(int error);
// Whether the error is one that a launch cannot cause, only report: a kernel that was launched
// before, by anyone, has failed since.
bool is_of_earlier_work(int error);

}  // namespace cuda

}  // namespace vae_fused
