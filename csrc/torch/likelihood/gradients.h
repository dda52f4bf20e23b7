// The gradients of a call, as every backward of the family computes them.
#pragma once

#include "torch/likelihood/observations.h"
#include "torch/reduction.h"

namespace vae_fused {

// By output, second, third, target and library. Undefined: not required.
using Gradients = std::array<Tensor, 5>;

// The gradients of sum(grad * nll), in one launch, or two where that of a broadcast parameter is
// summed; a softmax adds one. `grad` has the shape of the reduced loss; absent: 1.
//
// `params` says what the launch computes besides: the value of nll, and a KL term.
Gradients compute_gradients(const OptionalTensor& grad, const ObservedTensors& call,
                            VAE_FUSED_OBSERVATIONS, const Tensor& rows, const Reduction& reduced,
                            std::array<bool, 5> output_mask, NllBackwardParams params);

}  // namespace vae_fused
