// Tensors become operands, and params are launched.
#pragma once

#include "space.h"
#include "torch/check.h"

namespace vae_fused {

// A tensor in the shape of mu, or several samples of that shape along one more dimension.
struct Bound {
  Tensor* tensor;
  Operand* operand;
  bool written = false;
  int64_t* step = nullptr;

  Bound(Tensor& tensor, Operand& operand, bool written = false)
      : tensor(&tensor), operand(&operand), written(written) {}
  Bound(Tensor& tensor, Sampled& operand, bool written = false)
      : tensor(&tensor), operand(&operand), written(written), step(&operand.step) {}
};

// The space of mu, the other tensors of its Gaussians, and `more`, as far as they are defined. z,
// or its gradient, tells how many samples there are. Where more than kMaxDims dimensions cannot be
// merged, copies that are contiguous have fewer; results are then copied back.
Space bind(Gaussians& gaussians, Tensor& mu, Tensors& of, const Tensor& z, DimSet summed,
           std::initializer_list<Bound> more);
void copy_back(const Tensor& bound, const Tensor& result);

// A new tensor that a kernel is about to write, of the size of mu or more: see cpu/pages.cpp.
Tensor prepared(Tensor result);

// Several samples lie along one dimension before those of mu; one has none.
Tensor in_one_dim(const Tensor& t, const Tensor& mu);

void launch(const ForwardParams& params, at::Device device);
void launch(const BackwardParams& params, at::Device device);
void launch_forward(const MultiParams& params, at::Device device);
void launch_backward(const MultiParams& params, at::Device device);

}  // namespace vae_fused
