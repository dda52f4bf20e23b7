#include "cpu/capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "params/device.h"

#if defined(VAE_FUSED_CPU_TARGETS)
#include <cpuid.h>
#endif

namespace vae_fused::cpu {
namespace {

constexpr const char* kVariable = "VAE_FUSED_CPU_CAPABILITY";
constexpr const char* kNames[] = {"default", "avx2", "avx512"};

#if defined(VAE_FUSED_CPU_TARGETS)
// clang's __builtin_cpu_supports does not accept "f16c".
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

Capability best() {
#if defined(VAE_FUSED_CPU_TARGETS)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_f16c();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2) return avx512 ? Capability::kAvx512 : Capability::kAvx2;
#endif
  return Capability::kDefault;
}

Capability choose() {
  const Capability has = best();
  const char* const value = std::getenv(kVariable);
  if (!value || !*value) return has;
  for (int level = 0; level < 3; ++level) {
    if (std::string(value) != kNames[level]) continue;
    if (level <= static_cast<int>(has)) return static_cast<Capability>(level);
    throw std::invalid_argument(std::string(kVariable) + " must be at most " +
                                kNames[static_cast<int>(has)] + " on this machine and build, got " +
                                value);
  }
  throw std::invalid_argument(std::string(kVariable) +
                              " must be one of avx512, avx2, default, got '" + value + "'");
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

const char* capability_name() { return kNames[static_cast<int>(capability())]; }

}  // namespace vae_fused::cpu
