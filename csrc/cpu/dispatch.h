// From a call to its tiles: one task function for each dtype, compiled once for each x86-64 level.
#pragma once

#include "cpu/tile.h"

// The loader picks the best clone (AVX-512, AVX2, baseline) when the library loads; `flatten` pulls
// the whole tile into it. No -march flag: the same binary runs everywhere. Sanitizers instrument
// the resolvers before they are set up, so such a build has the baseline alone.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define VAE_FUSED_VECTORISED \
  __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VAE_FUSED_VECTORISED
#endif

namespace vae_fused::cpu {

constexpr int64_t kGrain = 8;  // tiles a task; below that, waking a second thread costs more

template <typename Params>
struct Task {
  const Params& params;
  Key key;
};

}  // namespace vae_fused::cpu

// Defines `Body kBodies[]`, in the order of DType, from a template `tile<S>(params, key, t)`.
// target_clones does not apply to templates, hence the macro.
#define VAE_FUSED_TASK(Params, tile, name, S)                                        \
  VAE_FUSED_VECTORISED void task_##name(void* context, int64_t begin, int64_t end) { \
    const auto& task = *static_cast<const Task<Params>*>(context);                   \
    for (int64_t t = begin; t < end; ++t) tile<S>(task.params, task.key, t);         \
  }
#define VAE_FUSED_TASKS(Params, tile)              \
  VAE_FUSED_TASK(Params, tile, float32, float)     \
  VAE_FUSED_TASK(Params, tile, float64, double)    \
  VAE_FUSED_TASK(Params, tile, float16, Half)      \
  VAE_FUSED_TASK(Params, tile, bfloat16, BFloat16) \
  constexpr Body kBodies[] = {task_float32, task_float64, task_float16, task_bfloat16};
