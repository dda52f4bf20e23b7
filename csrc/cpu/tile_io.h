// Moving a tile between tensors and the dense buffers that the arithmetic works on.
//
// A tile is a range of flat elements (see Space), computed a piece at a time. Where the tensor is
// linear a piece is one run; else it is walked in runs along the innermost dimension.
#pragma once

#include <type_traits>

#include "cpu/noise.h"
#include "cpu/vector.h"
#include "iteration/space.h"
#include "math/lanes.h"
#include "math/storage.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// A loop in a function of its own: what is the same for all dtypes is compiled once, and the
// registers are there for one loop at a time.
#define VAE_FUSED_NOINLINE __attribute__((noinline))

// What the arithmetic's loops step over: vectors of float, one double after the other.
template <typename T>
using Lanes = std::conditional_t<std::is_same_v<T, float>, Float, T>;
template <typename T>
constexpr int kStep = std::is_same_v<T, float> ? kWidth : 1;

// Calls visit(std::true_type or std::false_type for each flag), for loops to be compiled for each.
template <bool... kKnown, typename Visit>
VAE_FUSED_HD void with_flags(const Visit& visit) {
  visit(std::bool_constant<kKnown>{}...);
}
template <bool... kKnown, typename Visit, typename... Flags>
VAE_FUSED_HD void with_flags(const Visit& visit, bool flag, Flags... rest) {
  flag ? with_flags<kKnown..., true>(visit, rest...) : with_flags<kKnown..., false>(visit, rest...);
}

// Not std::fill_n: this must have no name that other files know.
template <typename T>
VAE_FUSED_NOINLINE void fill_with(T value, T* to, int n) {
  for (int j = 0; j < n; ++j) to[j] = value;
}

template <typename S>
VAE_FUSED_HD Float get(const S* from) {
  return load(from);
}
template <typename S>
VAE_FUSED_HD void put(Float x, S* to) {
  store(x, to);
}
VAE_FUSED_HD double get(const double* from) { return *from; }
VAE_FUSED_HD void put(double x, double* to) { *to = x; }

// The elements that are computed at a time: the plain call's eight buffers of floats, and the
// tensors' lines, stay in the nearest cache, of 32 KiB. The family's twenty do not quite, but half
// of it was 3% slower, and twice 1% faster.
constexpr int kPiece = 512;

// The arithmetic goes through whole vectors, whatever lies behind the last element.
struct Piece {
  int64_t begin;
  int n;

  VAE_FUSED_HD int whole() const { return (n + kWidth - 1) / kWidth * kWidth; }
};

// The piece of a tile that begins `at` elements behind its first. It ends with a row, if `row` is
// the length of rows and not 0.
VAE_FUSED_HD Piece piece_of(const Tile& tile, int at, int64_t row = 0) {
  const int64_t begin = tile.begin + at;
  int64_t n = tile.n - at < kPiece ? tile.n - at : kPiece;
  if (row != 0) {
    const int64_t rest = row - begin % row;
    n = rest < n ? rest : n;
  }
  return {begin, static_cast<int>(n)};
}

// Whether pieces should end with rows of this length: the length, or 0. An operand that is
// broadcast along rows or over them is one dense run within a row, so the piece is read in place.
// The end of a row must then be the end of a vector, and a row long enough to be worth a piece.
VAE_FUSED_HD int64_t row_of_pieces(int64_t length) {
  return length >= kPiece / 4 && length % kWidth == 0 ? length : 0;
}

template <typename T>
VAE_FUSED_HD void pad(const Piece& piece, T* buffer) {
  for (int j = piece.n; j < piece.whole(); ++j) buffer[j] = T(0);
}

using math::arithmetic_t;
using math::BFloat16;
using math::Half;
using math::narrow;
using math::select;
using math::widen;

// The coordinates of a flat element, and its offset in a tensor.
VAE_FUSED_HD int64_t locate(const Space& space, const int64_t* stride, int64_t element,
                            int64_t (&coordinate)[kMaxDims]) {
  int64_t offset = 0;
  for (int d = space.ndim - 1; d >= 0; --d) {
    const int64_t outer = element / space.by_size[d];
    coordinate[d] = element - outer * space.size[d];
    element = outer;
    offset += coordinate[d] * stride[d];
  }
  return offset;
}

// Calls run(position in the tile, offset in the tensor, stride, length) for each run of the flat
// elements [begin, begin + n).
template <typename Run>
VAE_FUSED_HD void for_each_run(const Space& space, const int64_t* stride, const Piece& piece,
                               const Run& run) {
  const int inner = space.ndim - 1;
  int64_t coordinate[kMaxDims];
  int64_t offset = locate(space, stride, piece.begin, coordinate);
  const int64_t step = stride[inner];
  int64_t rest = space.size[inner] - coordinate[inner];
  for (int position = 0;;) {
    const int length = static_cast<int>(rest < piece.n - position ? rest : piece.n - position);
    run(position, offset, step, length);
    position += length;
    if (position == piece.n) return;
    rest = space.size[inner];
    offset += length * step;
    for (int d = inner - 1;; --d) {  // the next row; or of the next plane, ...
      offset += stride[d] - space.size[d + 1] * stride[d + 1];
      if (++coordinate[d] < space.size[d]) break;
      coordinate[d] = 0;
    }
  }
}

// Where a piece is one dense run of the tensor; else null.
template <typename S>
VAE_FUSED_HD S* dense(const Space& space, const Operand& operand, const Piece& piece) {
  S* const data = static_cast<S*>(operand.data);
  if (operand.linear) return data + piece.begin;
  const int inner = space.ndim - 1;
  if (operand.stride[inner] != 1 || space.size[inner] < piece.n) return nullptr;
  int64_t coordinate[kMaxDims];
  const int64_t offset = locate(space, operand.stride, piece.begin, coordinate);
  return coordinate[inner] + piece.n > space.size[inner] ? nullptr : data + offset;
}

// What a vector of floats is loaded from and stored to at once.
template <typename S>
constexpr bool kIsVector = std::is_same_v<S, float> || (kConvertsHalf && std::is_same_v<S, Half>);

// Runs are often short, a row's latents: two vectors that overlap copy 30 floats in a quarter of
// the time that a loop with a rest takes.
template <typename From, typename To>
VAE_FUSED_HD void copy_dense(const From* from, int n, To* to) {
  if constexpr (kIsVector<From> && kIsVector<To>) {
    if (n >= kWidth) {
      for (int j = 0; j < n - kWidth; j += kWidth) put(get(from + j), to + j);
      return put(get(from + n - kWidth), to + n - kWidth);
    }
  }
  for (int j = 0; j < n; ++j) narrow(widen(from[j]), to[j]);
}

template <typename S, typename T>
VAE_FUSED_HD void copy_run(const S* from, int64_t step, int n, T* to) {
  if (step == 1) {
    copy_dense(from, n, to);
  } else if (step == 0) {
    const T value = widen(*from);
    for (int j = 0; j < n; ++j) to[j] = value;
  } else {
    for (int j = 0; j < n; ++j) to[j] = widen(from[j * step]);
  }
}

template <typename S, typename T>
VAE_FUSED_NOINLINE void copy_in(const Space& space, const Operand& operand, Piece piece,
                                T* buffer) {
  const S* const data = static_cast<const S*>(operand.data);
  const auto copy = [&](int at, int64_t offset, int64_t step, int len) {
    copy_run(data + offset, step, len, buffer + at);
  };
  if (operand.linear) {
    copy(0, piece.begin, 1, piece.n);
  } else {
    for_each_run(space, operand.stride, piece, copy);
  }
  pad(piece, buffer);
}

template <typename S, typename T>
VAE_FUSED_NOINLINE void copy_out(const Space& space, const Operand& operand, Piece piece,
                                 const T* buffer) {
  S* const data = static_cast<S*>(operand.data);
  const auto copy = [&](int at, int64_t offset, int64_t step, int len) {
    if (step == 1) {
      copy_dense(buffer + at, len, data + offset);
    } else {
      for (int j = 0; j < len; ++j) narrow(buffer[at + j], data[offset + j * step]);
    }
  };
  if (operand.linear) {
    copy(0, piece.begin, 1, piece.n);
  } else {
    for_each_run(space, operand.stride, piece, copy);
  }
}

// The mask of a piece as numbers, 0 or 1.
template <typename T>
VAE_FUSED_NOINLINE void load_mask(const Space& space, const Operand& operand, Piece piece, T* out) {
  const uint8_t* const data = static_cast<const uint8_t*>(operand.data);
  for_each_run(space, operand.stride, piece, [&](int at, int64_t offset, int64_t step, int len) {
    copy_run(data + offset, step, len, out + at);
  });
  pad(piece, out);
}

// Masked elements are nought, whatever their tensors hold.
template <bool masked, typename T>
VAE_FUSED_HD Lanes<T> zero_if_masked(const T* mask, int j, Lanes<T> value) {
  if constexpr (!masked) return value;
  const Lanes<T> nought = T(0);
  return select(get(mask + j) == nought, nought, value);
}

// A dense run where it is already what the arithmetic works on; else null. Then nothing is moved:
// the copies would be a quarter of the forward kernel's time.
template <typename T, typename S>
VAE_FUSED_HD T* in_place(S* run, const Piece& piece) {
  if constexpr (std::is_same_v<S, T>) {
    if (piece.n == piece.whole()) return run;
  }
  return nullptr;
}

// The values of a piece: in the tensor itself, or brought into the buffer. Wanted are then those of
// the next piece.
template <typename S, typename T>
VAE_FUSED_HD const T* load(const Space& space, const Operand& operand, const Piece& piece,
                           T* buffer, Prefetcher& prefetcher) {
  S* const run = dense<S>(space, operand, piece);
  if (run) prefetcher.add_next(run);
  if (const T* const values = in_place<T>(run, piece)) return values;
  copy_in<S>(space, operand, piece, buffer);
  return buffer;
}

// Where to compute the values of a piece: in the tensor itself, or in the buffer, which is also for
// those that nobody wants.
template <typename S, typename T>
VAE_FUSED_HD T* target(const Space& space, const Operand& operand, const Piece& piece, T* buffer,
                       Prefetcher& prefetcher) {
  S* const run = operand.data ? dense<S>(space, operand, piece) : nullptr;
  if (run) prefetcher.add(run);
  T* const values = in_place<T>(run, piece);
  return values ? values : buffer;
}

// Puts what was computed at `target` into the tensor, if there is one and it is not there already.
template <typename S, typename T>
VAE_FUSED_HD void store(const Space& space, const Operand& operand, const Piece& piece,
                        const T* target, const T* buffer) {
  if (operand.data && target == buffer) copy_out<S>(space, operand, piece, buffer);
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
VAE_FUSED_NOINLINE void fill_runs(const Space& space, const Key& key, int64_t first, Piece piece,
                                  T* out, Prefetcher& prefetcher) {
  const int inner = space.ndim - 1;
  const bool long_runs = space.noise_stride[inner] == 1 && space.size[inner] >= kLongRun;
  uint64_t indices[kPiece];
  for_each_run(space, space.noise_stride, piece, [&](int at, int64_t index, int64_t step, int len) {
    if (long_runs) return fill(key, first + index, len, out + at, prefetcher);
    for (int j = 0; j < len; ++j) indices[at + j] = first + index + j * step;
  });
  if (!long_runs) fill_at(key, indices, piece.n, out);
}

// The noise of a piece and a sample: explicit, or regenerated from the key.
template <typename S, typename T>
VAE_FUSED_HD const T* load_noise(const Space& space, const Sampled& eps, const Key& key,
                                 int64_t sample, const Piece& piece, T* buffer,
                                 Prefetcher& prefetcher) {
  if (eps.data) return load<S>(space, of_sample<S>(eps, sample), piece, buffer, prefetcher);
  const int64_t first = sample * space.rows * space.cols;
  if (space.noise_linear) {
    fill(key, first + piece.begin, piece.n, buffer, prefetcher);
  } else {
    fill_runs(space, key, first, piece, buffer, prefetcher);
  }
  pad(piece, buffer);
  return buffer;
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
