#include "torch/space.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace vae_fused {

Reduction parse_reduction(std::string_view reduction, at::OptionalIntArrayRef dim, int64_t ndim) {
  Reduction result;
  if (dim.has_value()) {
    for (int64_t d : *dim) {
      d += d < 0 ? ndim : 0;
      TORCH_CHECK_INDEX(d >= 0 && d < ndim, "vae_fused: dim out of range for ", ndim, "-d mu");
      result.summed.set(d);
    }
    return result;
  }
  using Divisor = Reduction::Divisor;
  const auto all = ndim == 0 ? std::bitset<64>{} : ~std::bitset<64>{} >> (64 - ndim);
  if (reduction == "batchmean") {
    result.summed = all;
    result.divisor = Divisor::kBatch;
  } else if (reduction == "sum") {
    result.summed = all;
  } else if (reduction == "mean") {
    result.summed = all;
    result.divisor = Divisor::kNumel;
  } else if (reduction == "sample") {
    result.summed = all;
    result.summed.reset(0);
  } else {
    TORCH_CHECK_VALUE(reduction == "none", "vae_fused: unknown reduction '", reduction, "'");
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

double Reduction::scale(const Tensor& like) const {
  switch (divisor) {
    case Divisor::kBatch:
      return like.dim() == 0 ? 1.0 : 1.0 / static_cast<double>(like.size(0));
    case Divisor::kNumel:
      return 1.0 / static_cast<double>(like.numel());
    default:
      return 1.0;
  }
}

namespace {

// Dimensions in flat order with, for each, its stride in every operand; operand -1 is the noise.
struct Dims {
  std::vector<int64_t> size;
  std::vector<std::vector<int64_t>> stride;  // [dimension][operand]

  void append(int64_t n, const std::vector<int64_t>& strides) {
    if (n == 1) return;
    if (!size.empty()) {
      bool mergeable = true;
      for (size_t k = 0; k < strides.size(); ++k) {
        mergeable = mergeable && stride.back()[k] == strides[k] * n;
      }
      if (mergeable) {
        size.back() *= n;
        stride.back() = strides;
        return;
      }
    }
    size.push_back(n);
    stride.push_back(strides);
  }

  bool linear(size_t k) const {
    int64_t expected = 1;
    for (size_t d = size.size(); d-- > 0; expected *= size[d]) {
      if (stride[d][k] != expected) return false;
    }
    return true;
  }
};

Dims merge(at::IntArrayRef sizes, const Reduction& reduction,
           const std::vector<Binding>& bindings) {
  std::vector<int64_t> noise(sizes.size());
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0; step *= sizes[d]) noise[d] = step;

  Dims dims;
  for (const bool summed : {false, true}) {
    for (size_t d = 0; d < sizes.size(); ++d) {
      if (reduction.summed[d] != summed) continue;
      std::vector<int64_t> strides = {noise[d]};
      for (const Binding& b : bindings) strides.push_back(b.tensor->stride(d));
      dims.append(sizes[d], strides);
    }
  }
  if (dims.size.empty()) {  // one element
    dims.size.push_back(1);
    dims.stride.emplace_back(bindings.size() + 1, 1);
  }
  return dims;
}

void tile(Space& space) {
  if (space.cols <= kTile) {
    space.tiles_per_row = 1;
    space.rows_per_tile = kTile / space.cols;
    // A multiple of eight rows starts every tile of a linear space on whole vectors and blocks of
    // noise.
    if (space.rows_per_tile > 8) space.rows_per_tile &= ~int64_t{7};
    space.tiles = (space.rows + space.rows_per_tile - 1) / space.rows_per_tile;
  } else {
    space.rows_per_tile = 1;
    space.tiles_per_row = (space.cols + kTile - 1) / kTile;
    space.tiles = space.rows * space.tiles_per_row;
  }
}

}  // namespace

Space make_space(at::IntArrayRef sizes, const Reduction& reduction, std::vector<Binding> bindings) {
  bindings.erase(std::remove_if(bindings.begin(), bindings.end(),
                                [](const Binding& b) { return !b.tensor->defined(); }),
                 bindings.end());
  Dims dims = merge(sizes, reduction, bindings);
  if (dims.size.size() > kMaxDims) {
    for (Binding& b : bindings) *b.tensor = b.tensor->contiguous();
    dims = merge(sizes, reduction, bindings);
  }
  TORCH_CHECK_NOT_IMPLEMENTED(dims.size.size() <= kMaxDims,
                              "vae_fused: the summed and the kept dimensions alternate more than ",
                              kMaxDims, " times in a ", sizes.size(),
                              "-d tensor; move the summed dimensions to the end");

  Space space;
  space.ndim = static_cast<int32_t>(dims.size.size());
  space.rows = space.cols = 1;
  for (size_t d = 0; d < sizes.size(); ++d) {
    (reduction.summed[d] ? space.cols : space.rows) *= sizes[d];
  }
  for (int32_t d = 0; d < space.ndim; ++d) {
    space.size[d] = dims.size[d];
    space.noise_stride[d] = dims.stride[d][0];
    for (size_t k = 0; k < bindings.size(); ++k) {
      bindings[k].operand->stride[d] = dims.stride[d][k + 1];
    }
  }
  space.noise_linear = dims.linear(0);
  for (size_t k = 0; k < bindings.size(); ++k) {
    bindings[k].operand->linear = dims.linear(k + 1);
    bindings[k].operand->data = bindings[k].written
                                    ? bindings[k].tensor->mutable_data_ptr()
                                    : const_cast<void*>(bindings[k].tensor->const_data_ptr());
  }
  tile(space);
  return space;
}

}  // namespace vae_fused
