// The tensors of a call of the likelihood family: checked, expanded, and bound to what kernels
// take.
#pragma once

#include "params/likelihood.h"
#include "torch/likelihood/ops.h"
#include "torch/operands.h"
#include "torch/reduction.h"

namespace vae_fused {

// The tensors of a call in the shape of its output. Undefined: absent.
struct ObservedTensors {
  Tensor output, second, third, target, mask, weight, library;
  OptionNumbers options;
  OptionList option_list;  // as it was given, for the lifetime of the call

  ObservedTensors(VAE_FUSED_OBSERVATIONS, OptionList options);

  // The sizes of a value for each row, where rows lie along the last dimension.
  c10::SymDimVector row_sizes() const;
  // The shape of what `compute_rows` returns.
  c10::SymDimVector rows_sizes() const;
  CallTensors bindable() const;
  void describe(Observations& of) const;
  at::TensorOptions arithmetic_options() const;

 private:
  Tensor expanded(const Tensor& t) const;
  Tensor expanded(const OptionalTensor& t) const;
  Tensor rows_of(const OptionalTensor& t) const;
};

// The space whose rows lie along the last dimension.
DimSet last_dim(const Tensor& t);

// Memory for the partial sums of a kernel on a GPU. The CPU kernels have memory of their own.
Tensor partials_for(const Tensor& output, int64_t count, double*& data);

// The tiles of rows that consist of several.
int64_t parts_of(const Space& space);

// Writes the maximum and the shift of each row of a softmax.
void compute_rows(const ObservedTensors& call, const Tensor& rows);

// Computes the sums of nll into `result`, with the rows of a softmax. `params` says what else the
// launch computes. See nll.cpp.
void compute_nll(const ObservedTensors& call, const Tensor& rows, const Reduction& reduced,
                 const Tensor& result, NllParams& params);

// Adds what turns an output into the logarithm of a mean, if there is such a thing.
void add_rows(CallTensors& tensors, const ObservedTensors& call, const Tensor& rows);

}  // namespace vae_fused
