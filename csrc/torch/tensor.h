// The names that csrc/torch uses for torch types.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>

namespace vae_fused {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalGenerator = std::optional<at::Generator>;

// An absent tensor is undefined in autograd's lists, and std::nullopt in the arguments of a schema.
inline OptionalTensor optional(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

// Returns the type in which the arithmetic on a tensor's elements, and the sums over them, are
// computed.
at::ScalarType arithmetic_dtype(const Tensor& t);

}  // namespace vae_fused
