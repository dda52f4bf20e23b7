// The instruction set that the CPU kernels use. One binary contains kernels for several instruction
// sets. The machine or the user selects one of them at run time.
#pragma once

// The targets in addition to the baseline, which the compiler flags determine. Arm needs no
// additional target, because NEON is part of its baseline. Tests that use these kernels as an
// oracle, and mutation tests, define VAE_FUSED_CPU_BASELINE.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(VAE_FUSED_CPU_BASELINE)
#define VAE_FUSED_CPU_TARGETS 1
#define VAE_FUSED_AVX2 __attribute__((target("avx2,bmi,bmi2,fma,f16c")))
#define VAE_FUSED_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2,fma,f16c")))
#endif

namespace vae_fused::cpu {

enum class Capability : int { kDefault, kAvx2, kAvx512 };

// The best instruction set of the machine, or the one that VAE_FUSED_CPU_CAPABILITY names. Throws
// std::invalid_argument if the named instruction set is not available.
Capability capability();

}  // namespace vae_fused::cpu
