// The operators' `options`: what a call chooses about its Gaussians, as numbers in one flat list.
#pragma once

#include <c10/util/ArrayRef.h>

#include <optional>

#include "math/family.h"

namespace vae_fused {

using OptionList = std::optional<c10::ArrayRef<double>>;

// In the order of vae_fused/options.py, which writes the list:
//
//    0   kind of the posterior's scale, an index into kKinds
//    1   gain, shift, low, high, soft_clamp, beta, var_floor, std_floor      (0: no soft clamp)
//    9   the same nine for the prior's scale
//   18   soft clamp of mu (0: none), prior mean, prior raw scale
//   21   temperature, free_bits, weights of the KL's gradient towards posterior and prior
//   25   form (0: the KL, 1: linear), constant of the linear form
constexpr size_t kOptions = 27;

// Absent: the defaults.
math::Family<double> parse_options(OptionList options);

}  // namespace vae_fused
