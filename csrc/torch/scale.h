// Derives the scale options that kernels read from the numbers that Python passes.
#pragma once

#include "math/scale_options.h"

namespace vae_fused {

math::ScaleOptions<double> derived_scale(const math::GivenScale& given);

}  // namespace vae_fused
