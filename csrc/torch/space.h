// From tensors to the kernels' iteration space: which dimensions are summed, how dimensions merge.
#pragma once

#include <bitset>
#include <string_view>
#include <vector>

#include "params.h"
#include "torch/ops.h"

namespace vae_fused {

// What the KL is summed over and divided by.
//
//   reduction    summed       divided by       shape
//   batchmean    all          size(0)          ()
//   sum          all          1                ()
//   mean         all          numel            ()
//   sample       all but 0    1                (size(0),)
//   none         none         1                that of mu
//   with dim     dim          1                the other dimensions
struct Reduction {
  std::bitset<64> summed;
  enum class Divisor { kOne, kBatch, kNumel } divisor = Divisor::kOne;

  std::vector<c10::SymInt> shape(const Tensor& like) const;
  double scale(const Tensor& like) const;
};

Reduction parse_reduction(std::string_view reduction, at::OptionalIntArrayRef dim, int64_t ndim);

// One operand: the tensor it comes from (which may be made contiguous on the way) and where it
// goes.
struct Binding {
  Tensor* tensor;
  Operand* operand;
  bool written = false;
};

// The space that visits all bound tensors (all of shape `sizes`) with the summed dimensions last,
// and each operand's place in it. Tensors whose dimensions merge into more than kMaxDims, which
// takes at least 17, are made contiguous first.
Space make_space(at::IntArrayRef sizes, const Reduction& reduction, std::vector<Binding> bindings);

}  // namespace vae_fused
