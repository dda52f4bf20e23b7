// What the autograd nodes of one call and of a list have in common.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include "torch/differentiable.h"
#include "torch/dispatch.h"

namespace vae_fused::autograd {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A node's outputs and its tensors may be absent: undefined in autograd's lists, none in a schema.
inline OptionalTensor optional(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

// A gradient as kernels read it. An embedding's gradient of z, say, is sparse.
inline OptionalTensor dense(const Tensor& grad) {
  return optional(grad.defined() && grad.layout() != at::kStrided ? grad.to_dense() : grad);
}

// The arguments of every KL that are no tensors, from forward to backward.
struct Numbers {
  std::string reduction;
  std::optional<std::vector<double>> options;

  static void save(AutogradContext* ctx, std::string_view reduction, OptionList options) {
    ctx->saved_data["reduction"] = std::string(reduction);
    if (options.has_value()) ctx->saved_data["options"] = options->vec();
  }
  explicit Numbers(AutogradContext* ctx) : reduction(ctx->saved_data["reduction"].toStringRef()) {
    const auto it = ctx->saved_data.find("options");
    if (it != ctx->saved_data.end()) options = it->second.toDoubleVector();
  }
};

}  // namespace vae_fused::autograd
