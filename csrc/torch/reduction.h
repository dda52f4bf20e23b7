// The dimensions over which the KL is summed, the divisor of the sum, and the shape of the result.
#pragma once

#include <string_view>
#include <vector>

#include "iteration/make_space.h"
#include "torch/tensor.h"

namespace vae_fused {

//   reduction    summed       divided by       shape
//   batchmean    all          size(0)          ()
//   sum          all          1                ()
//   mean         all          numel            ()
//   sample       all but 0    1                (size(0),)
//   none         none         1                that of mu
//   with dim     dim          1                the other dimensions
struct Reduction {
  DimSet summed;
  enum class Divisor { kOne, kBatch, kNumel } divisor = Divisor::kOne;

  std::vector<c10::SymInt> shape(const Tensor& like) const;
  double factor(const Tensor& like) const;

  // Returns the same sums for tensors with `ndim` additional leading dimensions. The caller applies
  // the divisor, which does not include those dimensions.
  Reduction after(int64_t ndim) const { return {summed << ndim}; }
};

Reduction parse_reduction(std::string_view reduction, at::OptionalIntArrayRef dim, int64_t ndim);

}  // namespace vae_fused
