// The functions that a device provides to csrc/torch in addition to its kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vae_fused {

namespace cpu {

// Runs body(context, begin, end) over [0, n) on ATen's thread pool. csrc/torch passes this function
// to kernels.
using Body = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t n, int64_t grain, Body body, void* context);

// Call this for newly allocated memory, before a kernel writes to it for the first time. See
// cpu/pages.cpp.
void advise_huge_pages(void* data, size_t bytes);

// Returns the instruction set in use: avx512, avx2 or default. Throws std::invalid_argument if
// VAE_FUSED_CPU_CAPABILITY has another value, or names one that is not available on this machine.
const char* capability_name();

}  // namespace cpu

namespace cuda {

const char* error_string(int error);
// Whether this error, returned by a launch, was caused by an earlier kernel, which any code in the
// process may have launched.
bool is_of_earlier_work(int error);

}  // namespace cuda

}  // namespace vae_fused
