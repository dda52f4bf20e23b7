// Tensors become operands, and params are launched.
#pragma once

#include "space.h"
#include "torch/ops.h"

namespace vae_fused {

struct Bound {
  Tensor* tensor;
  Operand* operand;
  bool written = false;
  int64_t before = 0;  // dimensions before those of mu
};

// The space of all defined tensors. Where more than kMaxDims dimensions cannot be merged, copies
// that are contiguous have fewer; results are then copied back.
Space bind(const std::vector<int64_t>& sizes, DimSet summed, const std::vector<Bound>& bounds);
void copy_back(const Tensor& bound, const Tensor& result);

// Several samples lie along one dimension before those of mu; one has none.
Tensor in_one_dim(const Tensor& t, const Tensor& mu);
Bound sampled(Tensor& t, Sampled& operand, const Tensor& mu, bool written = false);
int64_t samples_of(const Tensor& t, const Tensor& mu);
void set_step(Sampled& operand, const Tensor& t, const Tensor& mu);

void launch(const ForwardParams& params, at::Device device);
void launch(const BackwardParams& params, at::Device device);
void launch_forward(const MultiParams& params, at::Device device);
void launch_backward(const MultiParams& params, at::Device device);

}  // namespace vae_fused
