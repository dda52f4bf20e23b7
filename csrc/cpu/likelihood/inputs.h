// Reads the inputs of a piece into the form that the arithmetic loops use: dense arrays of the
// arithmetic dtype, to which the target is converted as well.
#pragma once

#include "cpu/likelihood/tasks.h"
#include "cpu/tile_io.h"
#include "math/likelihood/kinds.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

template <class L>
constexpr int kTarget = L::kInputs - 1;

template <class L, typename T>
struct Inputs {
  alignas(64) T buffers[L::kInputs][kPiece];
  alignas(64) T mask[kPiece], scratch[kPiece];
  const T* in[L::kInputs];
};

template <typename T>
VAE_FUSED_HD const T* load_target(const Space& space, const Operand& target, TargetType type,
                                  const Piece& piece, T* buffer, Prefetcher& prefetcher) {
  switch (type) {
    case TargetType::kFloat32:
      return load<float>(space, target, piece, buffer, prefetcher);
    case TargetType::kFloat64:
      return load<double>(space, target, piece, buffer, prefetcher);
    case TargetType::kFloat16:
      return load<Half>(space, target, piece, buffer, prefetcher);
    case TargetType::kBFloat16:
      return load<BFloat16>(space, target, piece, buffer, prefetcher);
    case TargetType::kUInt8:
      return load<uint8_t>(space, target, piece, buffer, prefetcher);
    case TargetType::kInt32:
      return load<int32_t>(space, target, piece, buffer, prefetcher);
    default:
      return load<int64_t>(space, target, piece, buffer, prefetcher);
  }
}

// Computes the logarithm of the mean, (output - row_max) + row_shift.
template <bool has_max, typename T>
VAE_FUSED_NOINLINE void shift(const T* output, const T* row_max, const T* row_shift, T* out,
                              int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    Lanes<T> x = get(output + j);
    if constexpr (has_max) x = x - get(row_max + j);
    put(x + get(row_shift + j), out + j);
  }
}

template <class L, typename S, typename T>
VAE_FUSED_HD void load_inputs(const Space& space, const Observations& observations,
                              const Piece& piece, Inputs<L, T>& inputs, Prefetcher& prefetcher) {
  const int n = piece.whole();
  const Operand* const outputs[] = {&observations.output, &observations.second,
                                    &observations.third};
  for (int k = 0; k < kTarget<L>; ++k) {
    if (outputs[k]->data) {
      inputs.in[k] = load<S>(space, *outputs[k], piece, inputs.buffers[k], prefetcher);
    } else {
      fill_with(T(0), inputs.buffers[k], n);
      inputs.in[k] = inputs.buffers[k];
    }
  }
  inputs.in[kTarget<L>] = load_target(space, observations.target, observations.target_type, piece,
                                      inputs.buffers[kTarget<L>], prefetcher);
  if (observations.mask.data) load_mask(space, observations.mask, piece, inputs.mask);
  if (observations.row_shift.data) {
    // row_shift and row_max are constant along a row, so they are not prefetched.
    alignas(64) T shifts[kPiece];
    copy_in<T>(space, observations.row_shift, piece, shifts);
    if (observations.row_max.data) copy_in<T>(space, observations.row_max, piece, inputs.scratch);
    observations.row_max.data
        ? shift<true>(inputs.in[0], inputs.scratch, shifts, inputs.buffers[0], n)
        : shift<false>(inputs.in[0], inputs.scratch, shifts, inputs.buffers[0], n);
    inputs.in[0] = inputs.buffers[0];
  }
}

// Whether all elements of a call read the same value.
VAE_FUSED_HD bool is_constant(const Space& space, const Operand& operand) {
  for (int d = 0; d < space.ndim; ++d) {
    if (operand.stride[d] != 0) return false;
  }
  return true;
}

// Whether all elements of a piece read the same value.
VAE_FUSED_HD bool is_one_value(const Space& space, const Operand& operand, const Piece& piece) {
  const int inner = space.ndim - 1;
  return operand.stride[inner] == 0 && !operand.is_contiguous &&
         static_cast<int64_t>(piece.begin % space.size[inner]) + piece.n <= space.size[inner];
}
// Returns a pointer to the value that the first element of a piece reads.
template <typename S>
VAE_FUSED_HD const S* at_first(const Space& space, const Operand& operand, const Piece& piece) {
  int64_t coordinate[kMaxDims];
  return static_cast<const S*>(operand.data) +
         locate(space, operand.stride, piece.begin, coordinate);
}

// Multiplies values by their weights, and replaces the values of masked elements with 0.
template <bool masked, bool weighted, typename T>
VAE_FUSED_NOINLINE void weigh(const T* mask, const T* weight, T* values, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    Lanes<T> value = get(values + j);
    if constexpr (weighted) value = value * get(weight + j);
    put(zero_if_masked<masked>(mask, j, value), values + j);
  }
}

// Has room for a whole vector that begins at the last position, because `compress` writes whole
// vectors.
using Positions = int32_t[kPiece + kWidth];

// Collects the positions of unmasked, nonzero counts. Compressing whole vectors takes a third as
// long as the loop over elements, which takes 10 % of a kernel's time.
template <bool masked, typename T>
VAE_FUSED_NOINLINE int collect(const T* target, const T* mask, int n, Positions& positions) {
  int count = 0, j = 0;
  if constexpr (kHasCompress && std::is_same_v<T, float>) {
    for (; j + kWidth <= n; j += kWidth) {
      Mask found = ~(get(target + j) == Float(0.0f));
      if constexpr (masked) found = found & ~(get(mask + j) == Float(0.0f));
      count += compress(found.m, j, positions + count);
    }
  }
  for (; j < n; ++j) {
    positions[count] = j;
    count += target[j] != T(0) && (!masked || mask[j] != T(0));
  }
  return count;
}

template <class L, typename T>
VAE_FUSED_HD int collect_counts(const Inputs<L, T>& inputs, bool masked, int n,
                                Positions& positions) {
  const T* const target = inputs.in[kTarget<L>];
  return masked ? collect<true>(target, inputs.mask, n, positions)
                : collect<false>(target, inputs.mask, n, positions);
}

// Copies the inputs at the given positions. The last position is repeated to fill the last vector.
template <int kInputs, typename T>
VAE_FUSED_NOINLINE int gather(const T* const* in, const Positions& positions, int count,
                              T (*dense)[kPiece]) {
  const int whole = Piece{0, count}.whole();
  for (int k = 0; k < kInputs; ++k) {
    for (int j = 0; j < whole; ++j) dense[k][j] = in[k][positions[j < count ? j : count - 1]];
  }
  return whole;
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
