// The KL term of an evidence lower bound, from the tensors of a call to what kernels take.
#pragma once

#include "params/likelihood.h"
#include "torch/reduction.h"
#include "torch/tensor.h"

namespace vae_fused {

// What the operators take of a KL term beside the KL itself.
struct KlNumbers {
  OptionalTensor beta, capacity;  // 0-d, in the dtype of the arithmetic; absent: these
  double beta_value = 1.0;
  std::optional<double> capacity_value;  // none: no capacity
};

// Checks the tensors, and binds them. A KL that is 0-d is reduced already, as the loss is.
KlTerm bind_kl(const Tensor& kl, const KlNumbers& numbers, const Reduction& reduced,
               int64_t results, at::ScalarType dtype);

// The gradients of a KL term, and where a kernel writes them.
struct KlGradients {
  Tensor kl, beta;  // undefined: not required

  // The results' gradients must live until the launch.
  KlGradients(KlTerm& term, const OptionalTensor& grad_loss, const OptionalTensor& grad_kl,
              const Tensor& kl, const KlNumbers& numbers, std::array<bool, 2> output_mask);

 private:
  OptionalTensor grad_loss_, grad_kl_;  // contiguous
};

}  // namespace vae_fused
