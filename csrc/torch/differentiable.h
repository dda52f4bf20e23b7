// The gradients in ATen operators, for a backward that is itself differentiated: not fused.
#pragma once

#include "torch/ops.h"
#include "torch/reduction.h"

namespace vae_fused {

// Whether the autograd node has to see it. A forward-mode tangent goes the same way as a gradient:
// the node refuses it, where running on would drop it.
bool is_differentiable(const Tensor& t);

// The tensors of a call and the gradients that reached it; undefined: absent.
struct DifferentiableCall {
  Tensor grad_z, grad_kl, mu, raw, eps, key, prior_mean, prior_raw, mask;
  OptionList options;
};

// With respect to mu, raw, eps, prior_mean and prior_raw.
std::array<Tensor, 5> differentiable_backward(const DifferentiableCall& call,
                                              const Reduction& reduction);

}  // namespace vae_fused
