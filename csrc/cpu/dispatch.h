// From a call to its tiles: one task function for each dtype, compiled once for each x86-64 level.
#pragma once

#include <algorithm>

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

// `bodies` in the order of DType, those of the plain call first.
template <typename Params>
void run(const Task<Params>& task, ParallelFor parallel_for, const Body (&bodies)[2][4]) {
  const Gaussians& of = task.params.of;
  const int64_t grain = kGrain / std::clamp<int64_t>(of.samples, 1, kGrain);
  const Body body = bodies[of.plain ? 0 : 1][static_cast<int>(task.params.dtype)];
  parallel_for(task.params.space.tiles, grain, body, const_cast<Task<Params>*>(&task));
}

}  // namespace vae_fused::cpu

// Defines `Body kBodies[2][4]` from a template `tile<S>(params, family, key, t)`.
// target_clones does not apply to templates, hence the macro.
#define VAE_FUSED_TASK(Params, tile, name, family, S)                                   \
  VAE_FUSED_VECTORISED void task_##name(void* context, int64_t begin, int64_t end) {    \
    const auto& task = *static_cast<const Task<Params>*>(context);                      \
    using T = arithmetic_t<S>;                                                          \
    for (int64_t t = begin; t < end; ++t) tile<S, T>(task.params, family, task.key, t); \
  }
#define VAE_FUSED_TASKS(Params, tile)                                           \
  VAE_FUSED_TASK(Params, tile, float32, math::Plain<T>{}, float)                \
  VAE_FUSED_TASK(Params, tile, float64, math::Plain<T>{}, double)               \
  VAE_FUSED_TASK(Params, tile, float16, math::Plain<T>{}, Half)                 \
  VAE_FUSED_TASK(Params, tile, bfloat16, math::Plain<T>{}, BFloat16)            \
  VAE_FUSED_TASK(Params, tile, general_float32, task.family_of(T{}), float)     \
  VAE_FUSED_TASK(Params, tile, general_float64, task.family_of(T{}), double)    \
  VAE_FUSED_TASK(Params, tile, general_float16, task.family_of(T{}), Half)      \
  VAE_FUSED_TASK(Params, tile, general_bfloat16, task.family_of(T{}), BFloat16) \
  constexpr Body kBodies[2][4] = {                                              \
      {task_float32, task_float64, task_float16, task_bfloat16},                \
      {task_general_float32, task_general_float64, task_general_float16, task_general_bfloat16}};
