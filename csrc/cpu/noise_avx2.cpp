// The noise generator for AVX2. Only the code below the pragma is compiled for AVX2. It contains no
// inline functions from the standard library, because the linker could use this file's copies in
// other files.
#include "cpu/noise.h"

#if defined(VAE_FUSED_CPU_TARGETS)
#include <immintrin.h>

#define VAE_FUSED_TARGET avx2
#define VAE_FUSED_VECTOR_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(VAE_FUSED_AVX2, apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,fma,f16c")
#endif

#include "cpu/noise_target.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
