// The options of a scale, from what Python gives to what kernels take.
#pragma once

#include "math/scale_options.h"

namespace vae_fused {

math::ScaleOptions<double> derived_scale(const math::GivenScale& given);

}  // namespace vae_fused
