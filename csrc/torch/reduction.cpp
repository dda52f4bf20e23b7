#include "torch/reduction.h"

#include <c10/util/Exception.h>

namespace vae_fused {

Reduction parse_reduction(std::string_view reduction, at::OptionalIntArrayRef dim, int64_t ndim) {
  TORCH_CHECK_VALUE(ndim <= 64, "vae_fused: tensors must have at most 64 dimensions, got ", ndim);
  Reduction result;
  if (dim.has_value()) {
    for (const int64_t given : *dim) {
      const int64_t d = given + (given < 0 ? ndim : 0);
      TORCH_CHECK_INDEX(d >= 0 && d < ndim, "vae_fused: dim must be a dimension of a ", ndim,
                        "-d tensor, got ", given);
      result.summed.set(d);
    }
    return result;
  }
  using Divisor = Reduction::Divisor;
  const auto all = ndim == 0 ? DimSet{} : ~DimSet{} >> (64 - ndim);
  if (reduction == "batchmean") {
    result.summed = all;
    result.divisor = Divisor::kBatch;
  } else if (reduction == "sum") {
    result.summed = all;
  } else if (reduction == "mean") {
    result.summed = all;
    result.divisor = Divisor::kNumel;
  } else if (reduction == "sample") {
    TORCH_CHECK_VALUE(
        ndim > 0,
        "vae_fused: tensors must have at least 1 dimension for reduction=\"sample\", got none");
    result.summed = all;
    result.summed.reset(0);
  } else {
    TORCH_CHECK_VALUE(
        reduction == "none",
        "vae_fused: reduction must be one of batchmean, sum, mean, sample, none, got '", reduction,
        "'");
  }
  return result;
}

std::vector<c10::SymInt> Reduction::shape(const Tensor& like) const {
  std::vector<c10::SymInt> kept;
  for (int64_t d = 0; d < like.dim(); ++d) {
    if (!summed[d]) kept.push_back(like.sym_size(d));
  }
  return kept;
}

double Reduction::factor(const Tensor& like) const {
  switch (divisor) {
    case Divisor::kBatch:
      return like.dim() == 0 ? 1.0 : 1.0 / static_cast<double>(like.size(0));
    case Divisor::kNumel:
      return 1.0 / static_cast<double>(like.numel());
    default:
      return 1.0;
  }
}

}  // namespace vae_fused
