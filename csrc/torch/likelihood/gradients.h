// Computes the gradients of a call. All backward operators of the family use this function.
#pragma once

#include "torch/likelihood/observations.h"
#include "torch/reduction.h"

namespace vae_fused {

// The gradients of output, second, third, target and library. A gradient that is not required is
// undefined.
using Gradients = std::array<Tensor, 5>;

// Computes the gradients of sum(grad * nll) in one launch, or in two if the gradient of a broadcast
// parameter is summed. A softmax takes one more launch. `grad` has the shape of the reduced loss,
// and is 1 if absent.
//
// `params` selects what else the launch computes: the value of nll, a KL term, or both.
Gradients compute_gradients(const OptionalTensor& grad, const ObservedTensors& call,
                            VAE_FUSED_OBSERVATIONS, const Tensor& rows, const Reduction& reduced,
                            std::array<bool, 5> output_mask, NllBackwardParams params);

}  // namespace vae_fused
