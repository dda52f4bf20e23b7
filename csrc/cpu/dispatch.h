// From a call to its tiles: one task function for each dtype and instruction set.
#pragma once

#include "cpu/capability.h"
#include "cpu/tile.h"

namespace vae_fused::cpu {

constexpr int64_t kGrain = 8;  // tiles a task; below that, waking a second thread costs more

template <typename Params>
struct Task {
  const Params& params;
  Key key;

  Body body(const Body* const* bodies) const {
    return bodies[static_cast<int>(capability())][static_cast<int>(params.dtype)];
  }
};

}  // namespace vae_fused::cpu

// Defines `kBodies[capability][dtype]` from a template `tile<S>(params, key, t)`. `flatten` pulls
// the whole tile into each task function, and so compiles it for that function's instruction set:
// no -march flag, the same binary runs everywhere. Attributes do not apply to templates, hence the
// macros.
#define VAE_FUSED_TASK(Params, tile, attribute, name, S)                                           \
  __attribute__((flatten)) attribute void task_##name(void* context, int64_t begin, int64_t end) { \
    const auto& task = *static_cast<const Task<Params>*>(context);                                 \
    for (int64_t t = begin; t < end; ++t) tile<S>(task.params, task.key, t);                       \
  }
#define VAE_FUSED_TASKS_FOR(target, attribute, Params, tile)                            \
  namespace target {                                                                    \
  VAE_FUSED_TASK(Params, tile, attribute, float32, float)                               \
  VAE_FUSED_TASK(Params, tile, attribute, float64, double)                              \
  VAE_FUSED_TASK(Params, tile, attribute, float16, Half)                                \
  VAE_FUSED_TASK(Params, tile, attribute, bfloat16, BFloat16)                           \
  constexpr Body kBodies[] = {task_float32, task_float64, task_float16, task_bfloat16}; \
  }
#if defined(VAE_FUSED_CPU_TARGETS)
#define VAE_FUSED_TASKS(Params, tile)                             \
  VAE_FUSED_TASKS_FOR(for_any, , Params, tile)                    \
  VAE_FUSED_TASKS_FOR(for_avx2, VAE_FUSED_AVX2, Params, tile)     \
  VAE_FUSED_TASKS_FOR(for_avx512, VAE_FUSED_AVX512, Params, tile) \
  constexpr const Body* kBodies[] = {for_any::kBodies, for_avx2::kBodies, for_avx512::kBodies};
#else
#define VAE_FUSED_TASKS(Params, tile)          \
  VAE_FUSED_TASKS_FOR(for_any, , Params, tile) \
  constexpr const Body* kBodies[] = {for_any::kBodies};
#endif
