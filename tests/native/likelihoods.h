// The likelihoods of csrc/math on arrays. likelihoods.cpp is compiled once for each variant:
// numbers, numbers as the emulated device has them, and the vectors of each instruction set.
#pragma once

#include <cstdint>

#include "math/likelihood/options.h"

namespace likelihoods {

using Kind = vae_fused::LikelihoodKind;
using Options = vae_fused::math::LikelihoodOptions<double>;

// in: [inputs of the kind, n]; out: [1 + inputs, n], the value and its gradient. A count's parts
// are put together as a kernel does: those of every element, and `of_count` where x is not 0.
template <typename T>
using Evaluate = void (*)(Kind kind, const Options& options, const T* in, T* out, int64_t n);

struct Variant {
  const char* name;
  bool available;  // on this machine
  Evaluate<float> in_float;
  Evaluate<double> in_double;  // nullptr: this variant has none
};

extern const Variant scalar, emulated, baseline;
#if defined(LIKELIHOOD_TARGETS)
extern const Variant avx2, avx512;
#endif

}  // namespace likelihoods
