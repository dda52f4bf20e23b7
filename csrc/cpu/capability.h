// Which instruction set the CPU kernels use: one binary has them for several, and the machine, or
// the user, chooses when it is loaded.
#pragma once

// The targets beside the baseline that the compiler was called for. Arm needs none: NEON is its
// baseline. Tests whose oracle these kernels are define VAE_FUSED_CPU_BASELINE.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(VAE_FUSED_CPU_BASELINE)
#define VAE_FUSED_CPU_TARGETS 1
#define VAE_FUSED_AVX2 __attribute__((target("avx2,bmi,bmi2,fma,f16c")))
#define VAE_FUSED_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2,fma,f16c")))
#endif

namespace vae_fused::cpu {

enum class Capability : int { kDefault, kAvx2, kAvx512 };

// The best that the machine has, or what VAE_FUSED_CPU_CAPABILITY says. Throws
// std::invalid_argument if that is not to be had.
Capability capability();

}  // namespace vae_fused::cpu
