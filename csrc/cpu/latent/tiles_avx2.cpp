// The tile code for AVX2. Only the code below the pragma is compiled for AVX2. Its functions are
// always inlined or have internal linkage. Code shared with other files is included above the
// pragma.
#include "cpu/latent/stats_tasks.h"
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

#include "cpu/latent/backward_tile.h"
#include "cpu/latent/forward_tile.h"
#include "cpu/latent/stats_tile.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
