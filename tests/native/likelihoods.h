// The likelihoods of csrc/math on arrays. likelihoods.cpp is compiled once for each variant:
// scalars of the host, scalars of the emulated device, and the vectors of each instruction set.
#pragma once

#include <cstdint>

#include "math/likelihood/options.h"

namespace likelihoods {

using Kind = vae_fused::LikelihoodKind;
using Options = vae_fused::math::LikelihoodOptions<double>;

// `in` is [inputs of the kind, n]. `out` is [1 + inputs, n], the value and its gradient. For count
// likelihoods, two parts are added as in a kernel: the part that every element has, and
// `count_term` where x is not 0.
template <typename T>
using Evaluate = void (*)(Kind kind, const Options& options, const T* in, T* out, int64_t n);

struct Variant {
  const char* name;
  bool available;  // on this machine
  Evaluate<float> in_float;
  Evaluate<double> in_double;  // nullptr if this variant has no double
};

extern const Variant scalar, emulated, baseline;
#if defined(LIKELIHOOD_TARGETS)
extern const Variant avx2, avx512;
#endif

}  // namespace likelihoods
