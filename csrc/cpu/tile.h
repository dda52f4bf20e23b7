// Moving a tile between tensors and the dense buffers that the arithmetic works on.
//
// A tile is a range of flat elements (see Space). Where the tensor is linear its elements are one
// run; else the tile is walked in runs along the innermost dimension.
#pragma once

#include <type_traits>

#include "cpu/noise.h"
#include "math/storage.h"
#include "params.h"

namespace vae_fused::cpu {

// For loops whose arrays do not overlap, where too many pointers keep compilers from proving it.
#if defined(__clang__)
#define VAE_FUSED_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define VAE_FUSED_INDEPENDENT _Pragma("GCC ivdep")
#else
#define VAE_FUSED_INDEPENDENT
#endif

using math::arithmetic_t;
using math::BFloat16;
using math::Half;
using math::narrow;
using math::widen;

// Calls run(position in the tile, offset in the tensor, stride, length) for each run of the flat
// elements [begin, begin + n).
template <typename Run>
VAE_FUSED_HD void for_each_run(const Space& space, const int64_t* stride, int64_t begin, int n,
                               const Run& run) {
  const int inner = space.ndim - 1;
  int64_t coordinate[kMaxDims];
  int64_t offset = 0;
  for (int d = inner; d >= 0; --d) {
    coordinate[d] = begin % space.size[d];
    begin /= space.size[d];
    offset += coordinate[d] * stride[d];
  }
  for (int position = 0; position < n;) {
    const int64_t rest = space.size[inner] - coordinate[inner];
    const int length = rest < n - position ? static_cast<int>(rest) : n - position;
    run(position, offset, stride[inner], length);
    position += length;
    coordinate[inner] += length;
    offset += length * stride[inner];
    for (int d = inner; d > 0 && coordinate[d] == space.size[d]; --d) {
      offset += stride[d - 1] - space.size[d] * stride[d];
      coordinate[d] = 0;
      ++coordinate[d - 1];
    }
  }
}

// Whether a tile of the tensor is already what the arithmetic works on. Then nothing is moved: the
// copies would be a quarter of the forward kernel's time.
template <typename S>
VAE_FUSED_HD bool in_place(const Operand& operand) {
  return std::is_same_v<S, arithmetic_t<S>> && operand.linear;
}

// The tile's values: in the tensor itself, or brought into the buffer.
template <typename S>
VAE_FUSED_HD const arithmetic_t<S>* load(const Space& space, const Operand& operand, int64_t begin,
                                         int n, arithmetic_t<S>* buffer) {
  const S* data = static_cast<const S*>(operand.data);
  if (in_place<S>(operand)) return reinterpret_cast<const arithmetic_t<S>*>(data + begin);
  if (operand.linear) {
    for (int j = 0; j < n; ++j) buffer[j] = widen(data[begin + j]);
    return buffer;
  }
  for_each_run(space, operand.stride, begin, n, [&](int at, int64_t offset, int64_t step, int len) {
    if (step == 1) {
      for (int j = 0; j < len; ++j) buffer[at + j] = widen(data[offset + j]);
    } else {
      for (int j = 0; j < len; ++j) buffer[at + j] = widen(data[offset + j * step]);
    }
  });
  return buffer;
}

VAE_FUSED_HD void load_mask(const Space& space, const Operand& operand, int64_t begin, int n,
                            uint8_t* out) {
  const uint8_t* data = static_cast<const uint8_t*>(operand.data);
  for_each_run(space, operand.stride, begin, n, [&](int at, int64_t offset, int64_t step, int len) {
    for (int j = 0; j < len; ++j) out[at + j] = data[offset + j * step];
  });
}

// Where to compute the tile's values: in the tensor itself, or in the buffer, for `store`.
template <typename S>
VAE_FUSED_HD arithmetic_t<S>* target(const Operand& operand, int64_t begin,
                                     arithmetic_t<S>* buffer) {
  S* data = static_cast<S*>(operand.data);
  return in_place<S>(operand) ? reinterpret_cast<arithmetic_t<S>*>(data + begin) : buffer;
}

template <typename S>
VAE_FUSED_HD void copy_out(const Space& space, const Operand& operand, int64_t begin, int n,
                           const arithmetic_t<S>* buffer) {
  S* data = static_cast<S*>(operand.data);
  if (operand.linear) {
    for (int j = 0; j < n; ++j) narrow(buffer[j], data[begin + j]);
    return;
  }
  for_each_run(space, operand.stride, begin, n, [&](int at, int64_t offset, int64_t step, int len) {
    if (step == 1) {
      for (int j = 0; j < len; ++j) narrow(buffer[at + j], data[offset + j]);
    } else {
      for (int j = 0; j < len; ++j) narrow(buffer[at + j], data[offset + j * step]);
    }
  });
}

// Puts what was computed at `target` into the tensor.
template <typename S>
VAE_FUSED_HD void store(const Space& space, const Operand& operand, int64_t begin, int n,
                        const arithmetic_t<S>* buffer) {
  if (!in_place<S>(operand)) copy_out<S>(space, operand, begin, n, buffer);
}

constexpr int64_t kLongRun = 32;

// The values of a sample.
template <typename S>
VAE_FUSED_HD Operand of_sample(const Sampled& operand, int64_t sample) {
  Operand result = operand;
  result.data = static_cast<S*>(operand.data) + sample * operand.step;
  return result;
}

// The noise of a tile and a sample: explicit, or regenerated from the key.
template <typename S>
VAE_FUSED_HD const arithmetic_t<S>* load_noise(const Space& space, const Sampled& eps,
                                               const Key& key, int64_t sample, int64_t begin, int n,
                                               arithmetic_t<S>* buffer) {
  if (eps.data) return load<S>(space, of_sample<S>(eps, sample), begin, n, buffer);
  const int64_t first = sample * space.rows * space.cols;
  if (space.noise_linear) {
    fill_normals(key, first + begin, n, buffer);
    return buffer;
  }
  // A call makes normals by the hundred: runs that are shorter, or not in order, go together.
  const int inner = space.ndim - 1;
  const bool long_runs = space.noise_stride[inner] == 1 && space.size[inner] >= kLongRun;
  uint64_t indices[kTile];
  for_each_run(space, space.noise_stride, begin, n,
               [&](int at, int64_t index, int64_t step, int len) {
                 if (long_runs) return fill_normals(key, first + index, len, buffer + at);
                 for (int j = 0; j < len; ++j) indices[at + j] = first + index + j * step;
               });
  if (!long_runs) fill_normals_at(key, indices, n, buffer);
  return buffer;
}

}  // namespace vae_fused::cpu
