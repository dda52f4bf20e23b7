// Converts the tensors of the KL term in an evidence lower bound to kernel parameters.
#pragma once

#include "params/likelihood.h"
#include "torch/reduction.h"
#include "torch/tensor.h"

namespace vae_fused {

// The operator arguments for a KL term, other than the KL itself.
struct KlNumbers {
  OptionalTensor beta, capacity;  // 0-d, in the arithmetic dtype; absent: the numbers below
  double beta_value = 1.0;
  std::optional<double> capacity_value;  // none: no capacity
};

// Checks the tensors and binds them. A 0-d KL has already been reduced, so its factor is 1.
KlTerm bind_kl(const Tensor& kl, const KlNumbers& numbers, const Reduction& reduced,
               int64_t results, at::ScalarType dtype);

// The gradients of a KL term, which a kernel writes.
struct KlGradients {
  Tensor kl, beta;  // undefined: not required

  // The object must live until the launch, because it holds the gradients of the results, which the
  // kernel reads.
  KlGradients(KlTerm& term, const OptionalTensor& grad_loss, const OptionalTensor& grad_kl,
              const Tensor& kl, const KlNumbers& numbers, std::array<bool, 2> output_mask);

 private:
  OptionalTensor grad_loss_, grad_kl_;  // contiguous
};

}  // namespace vae_fused
