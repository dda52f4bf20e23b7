// From a call to its tiles: one task function for each dtype, family and instruction set.
#pragma once

#include <algorithm>

#include "cpu/capability.h"
#include "cpu/tile.h"

namespace vae_fused::cpu {

constexpr int64_t kGrain = 8;  // tiles a task; below that, waking a second thread costs more

// A call, with what its tiles have in common.
template <typename Params>
struct Task {
  const Params& params;
  Key key;
  math::Family<float> family;

  explicit Task(const Params& params)
      : params(params), key(resolve(params.key)), family(math::narrowed<float>(params.of.family)) {}

  VAE_FUSED_HD const math::Family<float>& family_of(float) const { return family; }
  VAE_FUSED_HD const math::Family<double>& family_of(double) const { return params.of.family; }
};

// By dtype, those of the plain family first.
struct Bodies {
  Body plain[4], general[4];
};

template <typename Params>
void run(const Task<Params>& task, ParallelFor parallel_for, const Bodies* bodies) {
  const Gaussians& of = task.params.of;
  const int64_t grain = kGrain / std::clamp<int64_t>(of.samples, 1, kGrain);
  const Bodies& here = bodies[static_cast<int>(capability())];
  const Body body = (of.plain ? here.plain : here.general)[static_cast<int>(task.params.dtype)];
  parallel_for(task.params.space.tiles, grain, body, const_cast<Task<Params>*>(&task));
}

}  // namespace vae_fused::cpu

// Defines `kBodies[capability]` from a template `tile<S>(params, family, key, t)`. `flatten` pulls
// the whole tile into each task function, and so compiles it for that function's instruction set:
// no -march flag, the same binary runs everywhere. Attributes do not apply to templates, hence the
// macros.
#define VAE_FUSED_TASK(Params, tile, attribute, name, family, S)                                   \
  __attribute__((flatten)) attribute void task_##name(void* context, int64_t begin, int64_t end) { \
    const auto& task = *static_cast<const Task<Params>*>(context);                                 \
    using T = arithmetic_t<S>;                                                                     \
    for (int64_t t = begin; t < end; ++t) tile<S, T>(task.params, family, task.key, t);            \
  }
#define VAE_FUSED_TASKS_FOR(target, attribute, Params, tile)                                      \
  namespace target {                                                                              \
  VAE_FUSED_TASK(Params, tile, attribute, float32, math::Plain<T>{}, float)                       \
  VAE_FUSED_TASK(Params, tile, attribute, float64, math::Plain<T>{}, double)                      \
  VAE_FUSED_TASK(Params, tile, attribute, float16, math::Plain<T>{}, Half)                        \
  VAE_FUSED_TASK(Params, tile, attribute, bfloat16, math::Plain<T>{}, BFloat16)                   \
  VAE_FUSED_TASK(Params, tile, attribute, general_float32, task.family_of(T{}), float)            \
  VAE_FUSED_TASK(Params, tile, attribute, general_float16, task.family_of(T{}), Half)             \
  VAE_FUSED_TASK(Params, tile, attribute, general_bfloat16, task.family_of(T{}), BFloat16)        \
  constexpr Bodies kBodies = {                                                                    \
      {task_float32, task_float64, task_float16, task_bfloat16},                                  \
      {task_general_float32, task_general_float64, task_general_float16, task_general_bfloat16}}; \
  }
// The general family in double calls the C library for each element, and no vectors come of it: one
// version for all.
#define VAE_FUSED_COMMON_TASKS(Params, tile) \
  VAE_FUSED_TASK(Params, tile, , general_float64, task.family_of(T{}), double)
#if defined(VAE_FUSED_CPU_TARGETS)
#define VAE_FUSED_TASKS(Params, tile)                             \
  VAE_FUSED_COMMON_TASKS(Params, tile)                            \
  VAE_FUSED_TASKS_FOR(for_any, , Params, tile)                    \
  VAE_FUSED_TASKS_FOR(for_avx2, VAE_FUSED_AVX2, Params, tile)     \
  VAE_FUSED_TASKS_FOR(for_avx512, VAE_FUSED_AVX512, Params, tile) \
  constexpr Bodies kBodies[] = {for_any::kBodies, for_avx2::kBodies, for_avx512::kBodies};
#else
#define VAE_FUSED_TASKS(Params, tile)          \
  VAE_FUSED_COMMON_TASKS(Params, tile)         \
  VAE_FUSED_TASKS_FOR(for_any, , Params, tile) \
  constexpr Bodies kBodies[] = {for_any::kBodies};
#endif
