// Moving a tile between tensors and the dense buffers that the arithmetic works on.
//
// A tile is a range of flat elements (see Space). Where the tensor is linear its elements are one
// run; else the tile is walked in runs along the innermost dimension.
#pragma once

#include <type_traits>

#include "math/normal.h"
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

// The normals of `blocks` whole blocks from counter `first` on. Staged, so that each loop is one
// that compilers vectorise: words of a batch, normals of the batch, and only then the interleaving.
template <typename T>
VAE_FUSED_HD void fill_blocks(uint64_t seed, uint64_t first, int blocks, T* out) {
  constexpr int kPer = math::kNormalsPerBlock<T>;
  constexpr int kBatch = 64;  // 2 KiB of buffers
  alignas(64) uint32_t words[4][kBatch];
  alignas(64) T staged[kPer][kBatch];
  for (int done = 0; done < blocks; done += kBatch) {
    const int n = blocks - done < kBatch ? blocks - done : kBatch;
    const uint64_t counter = first + done;
    for (int b = 0; b < n; ++b) {
      const math::Words block = math::philox(seed, counter + b);
      words[0][b] = block.w[0];
      words[1][b] = block.w[1];
      words[2][b] = block.w[2];
      words[3][b] = block.w[3];
    }
    for (int b = 0; b < n; ++b) {
      T block[kPer];
      math::normals({{words[0][b], words[1][b], words[2][b], words[3][b]}}, block);
      VAE_FUSED_UNROLL
      for (int j = 0; j < kPer; ++j) staged[j][b] = block[j];
    }
    for (int b = 0; b < n; ++b) {
      VAE_FUSED_UNROLL
      for (int j = 0; j < kPer; ++j) out[(done + b) * kPer + j] = staged[j][b];
    }
  }
}

// Normals `index` to `index + n` of the stream.
template <typename T>
VAE_FUSED_HD void fill_normals(const Key& key, uint64_t index, int n, T* out) {
  constexpr int kPer = math::kNormalsPerBlock<T>;
  int at = 0;
  for (; at < n && (index + at) % kPer != 0; ++at) {
    out[at] = math::normal_at<T>(key.seed, key.offset, index + at);
  }
  const int blocks = (n - at) / kPer;
  fill_blocks(key.seed, key.offset + (index + at) / kPer, blocks, out + at);
  for (at += blocks * kPer; at < n; ++at) {
    out[at] = math::normal_at<T>(key.seed, key.offset, index + at);
  }
}

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
  for_each_run(
      space, space.noise_stride, begin, n, [&](int at, int64_t index, int64_t step, int len) {
        if (step == 1) return fill_normals(key, first + index, len, buffer + at);
        for (int j = 0; j < len; ++j) {
          buffer[at + j] =
              math::normal_at<arithmetic_t<S>>(key.seed, key.offset, first + index + j * step);
        }
      });
  return buffer;
}

}  // namespace vae_fused::cpu
