// From a call to its tiles: a task function for each dtype, family and instruction set. Those of
// one instruction set are in a file of their own, compiled for it: see tiles_avx2.cpp.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/capability.h"
#include "params.h"

namespace vae_fused::cpu {

constexpr int64_t kGrain = 8;  // tiles a task; below that, waking a second thread costs more

// A call, with what its tiles have in common.
template <typename Params>
struct Task {
  const Params& params;
  Key key;
  math::Family<float> family;

  VAE_FUSED_HD const math::Family<float>& family_of(float) const { return family; }
  VAE_FUSED_HD const math::Family<double>& family_of(double) const { return params.of.family; }
};

// By dtype, those of the plain family first.
struct Bodies {
  Body plain[4], general[4];
};

#define VAE_FUSED_BODIES(target) \
  namespace target {             \
  extern const Bodies kForward;  \
  extern const Bodies kBackward; \
  }
VAE_FUSED_BODIES(baseline)
VAE_FUSED_BODIES(avx2)
VAE_FUSED_BODIES(avx512)
#undef VAE_FUSED_BODIES

// By capability.
#if defined(VAE_FUSED_CPU_TARGETS)
constexpr const Bodies* kForward[] = {&baseline::kForward, &avx2::kForward, &avx512::kForward};
constexpr const Bodies* kBackward[] = {&baseline::kBackward, &avx2::kBackward, &avx512::kBackward};
#else
constexpr const Bodies* kForward[] = {&baseline::kForward};
constexpr const Bodies* kBackward[] = {&baseline::kBackward};
#endif

inline const Bodies& bodies_of(const ForwardParams&) {
  return *kForward[static_cast<int>(capability())];
}
inline const Bodies& bodies_of(const BackwardParams&) {
  return *kBackward[static_cast<int>(capability())];
}

// Calls parallel_for(tiles, grain, body, context), a ParallelFor or like one.
template <typename Params, typename Parallel>
void run(const Params& params, const Key& key, const Parallel& parallel_for) {
  const Gaussians& of = params.of;
  const Task<Params> task{params, key, math::narrowed<float>(of.family)};
  const int64_t grain = kGrain / std::clamp<int64_t>(of.samples, 1, kGrain);
  const Bodies& bodies = bodies_of(params);
  const Body body = (is_plain(of) ? bodies.plain : bodies.general)[static_cast<int>(params.dtype)];
  parallel_for(params.space.tiles, grain, body, const_cast<Task<Params>*>(&task));
}

// Tells the caller the key, if asked.
inline void write_key(const Key& key, uint64_t* out) {
  if (!out) return;
  out[0] = key.seed;
  out[1] = key.offset;
}

}  // namespace vae_fused::cpu
