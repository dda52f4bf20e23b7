// Saves the options of a call in its autograd node: the numbers as arguments, and the tensors in
// slots.
#pragma once

#include "torch/latent/options.h"
#include "torch/node.h"

namespace vae_fused::autograd {

// Raises an error if a tensor option requires a gradient, because the kernels do not compute it.
inline void refuse_gradients(const GivenOptions& options) {
  options.for_each_scalar([](const char* name, const OptionalTensor& t) {
    if (!t) return;
    refuse_tangent(*t);
    TORCH_CHECK_VALUE(
        !t->requires_grad(), "vae_fused: ", name,
        " must not require a gradient, because none is computed; pass it with .detach()");
  });
}

// Returns the number of slots for the tensors. A call without such tensors has no slots for them,
// so its backward pass unpacks none.
inline size_t scalar_slots(const GivenOptions& options) {
  return options.has_scalars() ? kDeviceScalars : 0;
}

// Saves the tensors in consecutive slots, of which `slot` is the first.
template <typename Node>
void save_scalars(Node& node, size_t slot, const GivenOptions& options) {
  options.for_each_scalar([&](const char*, const OptionalTensor& t) { node.save(slot++, t); });
}

template <typename Arguments>
GivenOptions saved_options(const SavedCallWith<Arguments>& call, size_t slot) {
  GivenOptions options{call.arguments.options_ref()};
  if (call.tensors.size() == slot) return options;
  options.for_each_scalar(
      [&](const char*, OptionalTensor& t) { t = optional(call.tensors[slot++]); });
  return options;
}

}  // namespace vae_fused::autograd
