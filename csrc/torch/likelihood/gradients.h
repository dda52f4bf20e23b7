// The gradients of a call, for every backward of the family.
#pragma once

#include "torch/likelihood/observations.h"
#include "torch/reduction.h"

namespace vae_fused {

// The gradients of output, second, third, target and library. A gradient that is not required is
// undefined.
using Gradients = std::array<Tensor, 5>;

// The gradients of sum(grad * nll). This takes one launch, two if a broadcast parameter's gradient
// is summed, and one more for a softmax. `grad` has the shape of the reduced loss; absent: 1.
//
// `params` selects what the launch computes in addition: the value of nll, and a KL term.
Gradients compute_gradients(const OptionalTensor& grad, const ObservedTensors& call,
                            VAE_FUSED_OBSERVATIONS, const Tensor& rows, const Reduction& reduced,
                            std::array<bool, 5> output_mask, NllBackwardParams params);

}  // namespace vae_fused
