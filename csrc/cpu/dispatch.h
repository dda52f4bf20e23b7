// From a call to its tiles: a task function for each dtype, family and instruction set. Those of
// one instruction set are in a file of their own, compiled for it: see tiles_avx2.cpp.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/capability.h"
#include "params.h"

namespace vae_fused::cpu {

constexpr int64_t kGrain = 8;  // tiles a task; below that, waking a second thread costs more

// A call, with what its tiles have in common: the context of its body.
template <typename Params>
struct Task {
  const Params& params;
  Key key;
  math::Family<float> family;

  Task(const Params& params, const Key& key)
      : params(params), key(key), family(math::narrowed<float>(params.of.family)) {}

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

// What computes tiles of a call, given its Task.
template <typename Params>
Body body_of(const Params& params) {
  const Bodies& bodies = bodies_of(params);
  return (is_plain(params.of) ? bodies.plain : bodies.general)[static_cast<int>(params.dtype)];
}

template <typename Params>
void run(const Params& params, const Key& key, ParallelFor parallel_for) {
  Task<Params> task(params, key);
  const int64_t grain = kGrain / std::clamp<int64_t>(params.of.samples, 1, kGrain);
  parallel_for(params.space.tiles, grain, body_of(params), &task);
}

// Tells the caller the key, if asked.
inline void write_key(const Key& key, uint64_t* out) {
  if (!out) return;
  out[0] = key.seed;
  out[1] = key.offset;
}

}  // namespace vae_fused::cpu
