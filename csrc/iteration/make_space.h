// Converts shapes and strides to the kernels' iteration space (see Space in iteration/space.h). It
// puts dimensions in flat order, merges them where every operand allows it, and cuts the space into
// tiles. Host only.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <vector>

#include "iteration/space.h"

namespace vae_fused {

using DimSet = std::bitset<64>;  // torch tensors have at most 64 dimensions

// A tensor of a call and the operand that it becomes. If `data` is null, the tensor is absent.
struct BoundTensor {
  void* data;
  const int64_t* strides;  // in elements, one for each dimension
  Operand* operand;
};

namespace space_detail {

// A dimension of the space. `strides` contains its stride in the noise, followed by its stride in
// each operand. It is an array, because vectors caused most of the allocations of a small call.
struct Dim {
  int64_t size;
  std::array<int64_t, 1 + kMaxOperands> strides;
};

// Whether one step along `outer` is as far as inner.size steps along `inner`, in the noise and in
// every operand.
inline bool is_mergeable(const Dim& outer, const Dim& inner, size_t operands) {
  for (size_t k = 0; k <= operands; ++k) {
    if (outer.strides[k] != inner.strides[k] * inner.size) return false;
  }
  return true;
}

inline bool is_contiguous(const std::vector<Dim>& dims, size_t k) {
  int64_t expected = 1;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    if (dim->strides[k] != expected) return false;
    expected *= dim->size;
  }
  return true;
}

inline std::vector<Dim> merge(const std::vector<int64_t>& sizes, DimSet summed,
                              const std::vector<BoundTensor>& present) {
  int64_t numel = 1;
  for (const int64_t size : sizes) numel *= size;

  std::vector<Dim> dims;
  dims.reserve(sizes.size() + 1);
  for (const bool is_summed : {false, true}) {  // kept dimensions first
    int64_t noise = numel;
    for (size_t d = 0; d < sizes.size(); ++d) {
      noise /= sizes[d];
      if (summed[d] != is_summed || sizes[d] == 1) continue;
      Dim dim{sizes[d], {noise}};
      for (size_t k = 0; k < present.size(); ++k) dim.strides[k + 1] = present[k].strides[d];
      if (!dims.empty() && is_mergeable(dims.back(), dim, present.size())) {
        dim.size *= dims.back().size;
        dims.back() = dim;
      } else {
        dims.push_back(dim);
      }
    }
  }
  if (dims.empty()) {
    dims.push_back({1, {}});
    dims.back().strides.fill(1);
  }
  return dims;
}

inline void cut_into_tiles(Space& space) {
  space.rows_per_tile = space.tiles_per_row = 1;
  if (space.cols > kTile) {
    space.tiles_per_row = tiles_of(space.cols);
  } else {
    space.rows_per_tile = kTile / space.cols;
    // With a multiple of 8 rows, each tile of a contiguous space starts at the beginning of a
    // vector and of a block of noise.
    if (space.rows_per_tile > 8) space.rows_per_tile &= ~int64_t{7};
  }
  if (space.cols > 1 && space.cols <= kTile) {
    space.cols_reciprocal =
        static_cast<uint32_t>(((uint64_t{1} << 32) + space.cols - 1) / space.cols);
  }
  space.tiles = (space.rows + space.rows_per_tile - 1) / space.rows_per_tile * space.tiles_per_row;
}

// Whether an operand's last element is less than 2^31 elements after its first. No stride is
// negative.
inline bool has_32_bit_offsets(const std::vector<Dim>& dims, size_t operand) {
  int64_t last = 0;
  for (const Dim& d : dims) last += (d.size - 1) * d.strides[operand];
  return last < int64_t{1} << 31;
}

}  // namespace space_detail

// Makes the space that iterates over all bound tensors with the summed dimensions last. All tensors
// have the shape `sizes`, and none is empty. Returns false if more than kMaxDims dimensions remain.
inline bool make_space(const std::vector<int64_t>& sizes, DimSet summed,
                       const std::vector<BoundTensor>& bound_tensors, Space& space) {
  using namespace space_detail;
  std::vector<BoundTensor> present;
  present.reserve(bound_tensors.size());
  for (const BoundTensor& tensor : bound_tensors) {
    if (tensor.data) present.push_back(tensor);
  }
  const std::vector<Dim> dims = merge(sizes, summed, present);
  if (dims.size() > static_cast<size_t>(kMaxDims)) return false;

  space = Space{};
  space.ndim = static_cast<int32_t>(dims.size());
  space.rows = space.cols = 1;
  for (size_t d = 0; d < sizes.size(); ++d) (summed[d] ? space.cols : space.rows) *= sizes[d];
  space.has_contiguous_noise = is_contiguous(dims, 0);
  for (size_t d = 0; d < dims.size(); ++d) {
    space.size[d] = dims[d].size;
    space.size_divisor[d] = divisor(dims[d].size);
    space.noise_stride[d] = dims[d].strides[0];
  }
  space.has_32_bit_offsets = has_32_bit_offsets(dims, 0);
  for (size_t k = 0; k < present.size(); ++k) {
    space.has_32_bit_offsets = space.has_32_bit_offsets && has_32_bit_offsets(dims, k + 1);
    Operand& operand = *present[k].operand;
    operand.data = present[k].data;
    operand.is_contiguous = is_contiguous(dims, k + 1);
    for (size_t d = 0; d < dims.size(); ++d) operand.stride[d] = dims[d].strides[k + 1];
  }
  cut_into_tiles(space);
  return true;
}

}  // namespace vae_fused
