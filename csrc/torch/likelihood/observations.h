// The tensors of a call of the likelihood family: checked, expanded, and bound to operands.
#pragma once

#include "params/likelihood.h"
#include "torch/likelihood/ops.h"
#include "torch/operands.h"
#include "torch/reduction.h"

namespace vae_fused {

// The tensors of a call, in the shape of its output. Absent tensors are undefined.
struct ObservedTensors {
  Tensor output, second, third, target, mask, weight, library;
  OptionNumbers options;
  OptionList option_list;  // as it was passed; valid during the call

  ObservedTensors(VAE_FUSED_OBSERVATIONS, OptionList options);

  // Returns the shape of a tensor with one value per row, where rows extend along the last
  // dimension.
  c10::SymDimVector row_sizes() const;
  // Returns the shape of the tensor that `compute_rows` writes.
  c10::SymDimVector rows_sizes() const;
  CallTensors bindable() const;
  void describe(Observations& observations) const;
  at::TensorOptions arithmetic_options() const;

 private:
  Tensor expanded(const Tensor& t) const;
  Tensor expanded(const OptionalTensor& t) const;
  Tensor rows_of(const OptionalTensor& t) const;
};

// Returns the set that contains only the last dimension, along which rows extend.
DimSet last_dim(const Tensor& t);

// Allocates memory for the partial sums of a GPU kernel. The CPU kernels allocate this memory
// themselves.
Tensor partials_for(const Tensor& output, int64_t count, double*& data);

// Returns the number of tiles if each row consists of several tiles, otherwise 0.
int64_t parts_of(const Space& space);

// Writes the maximum and the shift of each row of a softmax.
void compute_rows(const ObservedTensors& call, const Tensor& rows);

// Writes the sums of nll to `result`. For a softmax, also writes `rows`. `params` selects what else
// the launch computes. See nll.cpp.
void compute_nll(const ObservedTensors& call, const Tensor& rows, const Reduction& reduced,
                 const Tensor& result, NllParams& params);

// Adds the tensors that convert an output to the logarithm of a mean, if there are any.
void add_rows(CallTensors& tensors, const ObservedTensors& call, const Tensor& rows);

}  // namespace vae_fused
