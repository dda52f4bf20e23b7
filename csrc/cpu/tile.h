// Moving a tile between tensors and the dense buffers that the arithmetic works on.
//
// A tile is a range of flat elements (see Space), computed a piece at a time. Where the tensor is
// linear a piece is one run; else it is walked in runs along the innermost dimension.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/noise.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// For loops whose arrays do not overlap, where too many pointers keep compilers from proving it.
#if defined(__clang__)
#define VAE_FUSED_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define VAE_FUSED_INDEPENDENT _Pragma("GCC ivdep")
#else
#define VAE_FUSED_INDEPENDENT
#endif

// A loop in a function of its own: GCC's vectoriser gives up on some of those that it vectorises
// alone when they stand among many others, and what is the same for all dtypes is compiled once.
#define VAE_FUSED_ALONE __attribute__((noinline))

// The elements that are computed at a time: seven buffers of floats, and what the calls need, stay
// in the nearest cache, of 32 KiB.
constexpr int kPiece = 512;

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
    const int64_t outer = begin / space.by_size[d];
    coordinate[d] = begin - outer * space.size[d];
    begin = outer;
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

// Whether the tensor's memory is already what the arithmetic works on. Then nothing is moved: the
// copies would be a quarter of the forward kernel's time.
template <typename S>
VAE_FUSED_HD bool in_place(const Operand& operand) {
  return std::is_same_v<S, arithmetic_t<S>> && operand.linear;
}

template <typename S, typename T>
VAE_FUSED_ALONE void copy_in(const Space& space, const Operand& operand, int64_t begin, int n,
                             T* buffer) {
  const S* const data = static_cast<const S*>(operand.data);
  const auto copy = [&](int at, int64_t offset, int64_t step, int len) {
    if (step == 1) {
      for (int j = 0; j < len; ++j) buffer[at + j] = widen(data[offset + j]);
    } else {
      for (int j = 0; j < len; ++j) buffer[at + j] = widen(data[offset + j * step]);
    }
  };
  operand.linear ? copy(0, begin, 1, n) : for_each_run(space, operand.stride, begin, n, copy);
}

template <typename S, typename T>
VAE_FUSED_ALONE void copy_out(const Space& space, const Operand& operand, int64_t begin, int n,
                              const T* buffer) {
  S* const data = static_cast<S*>(operand.data);
  const auto copy = [&](int at, int64_t offset, int64_t step, int len) {
    if (step == 1) {
      for (int j = 0; j < len; ++j) narrow(buffer[at + j], data[offset + j]);
    } else {
      for (int j = 0; j < len; ++j) narrow(buffer[at + j], data[offset + j * step]);
    }
  };
  operand.linear ? copy(0, begin, 1, n) : for_each_run(space, operand.stride, begin, n, copy);
}

VAE_FUSED_ALONE void load_mask(const Space& space, const Operand& operand, int64_t begin, int n,
                               uint8_t* out) {
  const uint8_t* const data = static_cast<const uint8_t*>(operand.data);
  for_each_run(space, operand.stride, begin, n, [&](int at, int64_t offset, int64_t step, int len) {
    for (int j = 0; j < len; ++j) out[at + j] = data[offset + j * step];
  });
}

// The values of a piece: in the tensor itself, or brought into the buffer.
template <typename S, typename T>
VAE_FUSED_HD const T* load(const Space& space, const Operand& operand, int64_t begin, int n,
                           T* buffer) {
  if (in_place<S>(operand)) return static_cast<const T*>(operand.data) + begin;
  copy_in<S>(space, operand, begin, n, buffer);
  return buffer;
}

// Where to compute the values of a piece: in the tensor itself, or in the buffer, which is also for
// those that nobody wants.
template <typename S, typename T>
VAE_FUSED_HD T* target(const Operand& operand, int64_t begin, T* buffer) {
  if (operand.data && in_place<S>(operand)) return static_cast<T*>(operand.data) + begin;
  return buffer;
}

// Puts what was computed at `target` into the tensor, if there is one.
template <typename S, typename T>
VAE_FUSED_HD void store(const Space& space, const Operand& operand, int64_t begin, int n,
                        const T* values) {
  if (operand.data && !in_place<S>(operand)) copy_out<S>(space, operand, begin, n, values);
}

// The values of a sample.
template <typename S>
VAE_FUSED_HD Operand of_sample(const Sampled& operand, int64_t sample) {
  Operand result = operand;
  if (result.data) result.data = static_cast<S*>(operand.data) + sample * operand.step;
  return result;
}

constexpr int64_t kLongRun = 32;

// The normals of a piece whose indices are not all in order. A call makes them by the hundred: runs
// that are shorter, or not in order, go together.
template <typename T>
VAE_FUSED_ALONE void fill_runs(const Space& space, const Key& key, int64_t first, int64_t begin,
                               int n, T* out) {
  const int inner = space.ndim - 1;
  const bool long_runs = space.noise_stride[inner] == 1 && space.size[inner] >= kLongRun;
  uint64_t indices[kPiece];
  for_each_run(space, space.noise_stride, begin, n,
               [&](int at, int64_t index, int64_t step, int len) {
                 if (long_runs) return fill(key, first + index, len, out + at);
                 for (int j = 0; j < len; ++j) indices[at + j] = first + index + j * step;
               });
  if (!long_runs) fill_at(key, indices, n, out);
}

// The noise of a piece and a sample: explicit, or regenerated from the key.
template <typename S, typename T>
VAE_FUSED_HD const T* load_noise(const Space& space, const Sampled& eps, const Key& key,
                                 int64_t sample, int64_t begin, int n, T* buffer) {
  if (eps.data) return load<S>(space, of_sample<S>(eps, sample), begin, n, buffer);
  const int64_t first = sample * space.rows * space.cols;
  if (space.noise_linear) {
    fill(key, first + begin, n, buffer);
  } else {
    fill_runs(space, key, first, begin, n, buffer);
  }
  return buffer;
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
