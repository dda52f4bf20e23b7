// Moves a tile between tensors and the dense buffers that the arithmetic loops use.
//
// A tile is a range of flat elements (see Space), computed one piece at a time. In a contiguous
// tensor, a piece is one contiguous run of elements. In other tensors, a piece is traversed in
// several runs along the innermost dimension.
#pragma once

#include <type_traits>

#include "cpu/noise.h"
#include "cpu/vector.h"
#include "iteration/space.h"
#include "math/lanes.h"
#include "math/storage.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// Keeps a loop in a separate function. Loops that are the same for all dtypes are then compiled
// only once, and each loop can use all registers.
#define VAE_FUSED_NOINLINE __attribute__((noinline))

// The type of the values in one step of the arithmetic loops: a vector of floats, or a single
// double.
template <typename T>
using Lanes = std::conditional_t<std::is_same_v<T, float>, Float, T>;
template <typename T>
constexpr int kStep = std::is_same_v<T, float> ? kWidth : 1;

// Calls visit with std::true_type or std::false_type for each flag, so that loops are compiled for
// each combination of flags.
template <bool... kConstants, typename Visit>
VAE_FUSED_HD void with_flags(const Visit& visit) {
  visit(std::bool_constant<kConstants>{}...);
}
template <bool... kConstants, typename Visit, typename... Flags>
VAE_FUSED_HD void with_flags(const Visit& visit, bool flag, Flags... rest) {
  flag ? with_flags<kConstants..., true>(visit, rest...)
       : with_flags<kConstants..., false>(visit, rest...);
}

// Replaces std::fill_n, because the linker could merge its copies for different instruction sets.
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

// The number of elements that are computed at a time. The eight float buffers of a default call and
// the cache lines of its tensors fit in a 32 KiB L1 cache. The twenty buffers of a call with
// options do not quite fit, but such a call was 3 % slower with pieces of half this size, and 1 %
// faster with pieces of twice this size.
constexpr int kPiece = 512;

// A part of a tile. The arithmetic loops compute whole vectors, but the values after the last
// element do not matter.
struct Piece {
  int64_t begin;
  int n;

  VAE_FUSED_HD int whole() const { return (n + kWidth - 1) / kWidth * kWidth; }
};

// Returns the piece that begins `at` elements after the beginning of a tile. If `row` is not 0, it
// is the length of the rows, and the piece does not extend past the end of a row.
VAE_FUSED_HD Piece piece_of(const Tile& tile, int at, int64_t row = 0) {
  const int64_t begin = tile.begin + at;
  int64_t n = tile.n - at < kPiece ? tile.n - at : kPiece;
  if (row != 0) {
    const int64_t rest = row - begin % row;
    n = rest < n ? rest : n;
  }
  return {begin, static_cast<int>(n)};
}

// Returns `length` if pieces should end where rows of this length end, otherwise 0. Within a row,
// an operand that all rows share is one dense run, which is read in place, and an operand that is
// constant along rows is a single value. Pieces end with the rows only if a row consists of whole
// vectors and is long enough for a piece to be worthwhile.
VAE_FUSED_HD int64_t row_of_pieces(int64_t length) {
  return length >= kPiece / 4 && length % kWidth == 0 ? length : 0;
}

template <typename T>
VAE_FUSED_HD void pad(const Piece& piece, T* buffer) {
  for (int j = piece.n; j < piece.whole(); ++j) buffer[j] = T(0);
}

using math::all;
using math::arithmetic_t;
using math::BFloat16;
using math::Half;
using math::narrow;
using math::select;
using math::widen;

// Computes the coordinates of a flat element, and returns its offset in a tensor.
VAE_FUSED_HD int64_t locate(const Space& space, const int64_t* stride, int64_t element,
                            int64_t (&coordinate)[kMaxDims]) {
  int64_t offset = 0;
  for (int d = space.ndim - 1; d >= 0; --d) {
    const int64_t outer = element / space.size_divisor[d];
    coordinate[d] = element - outer * space.size[d];
    element = outer;
    offset += coordinate[d] * stride[d];
  }
  return offset;
}

// Calls run(position in the piece, offset in the tensor, stride, length) for each run of the piece.
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
    for (int d = inner - 1;; --d) {  // to the next row, or the first row of the next plane, ...
      offset += stride[d] - space.size[d + 1] * stride[d + 1];
      if (++coordinate[d] < space.size[d]) break;
      coordinate[d] = 0;
    }
  }
}

// Returns the piece as one dense run of the tensor, or null if it is not dense.
template <typename S>
VAE_FUSED_HD S* dense(const Space& space, const Operand& operand, const Piece& piece) {
  S* const data = static_cast<S*>(operand.data);
  if (operand.is_contiguous) return data + piece.begin;
  const int inner = space.ndim - 1;
  if (operand.stride[inner] != 1 || space.size[inner] < piece.n) return nullptr;
  int64_t coordinate[kMaxDims];
  const int64_t offset = locate(space, operand.stride, piece.begin, coordinate);
  return coordinate[inner] + piece.n > space.size[inner] ? nullptr : data + offset;
}

// Whether a vector of floats is loaded from, and stored to, elements of type S in one operation.
template <typename S>
constexpr bool kIsVector = std::is_same_v<S, float> || (kConvertsHalf && std::is_same_v<S, Half>);

// A run is often as short as the latents of one row. Two overlapping vectors copy 30 floats in a
// quarter of the time that a loop with a remainder takes.
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
  if (operand.is_contiguous) {
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
  if (operand.is_contiguous) {
    copy(0, piece.begin, 1, piece.n);
  } else {
    for_each_run(space, operand.stride, piece, copy);
  }
}

// Loads the mask of a piece, converted to 0 or 1 in the arithmetic type.
template <typename T>
VAE_FUSED_NOINLINE void load_mask(const Space& space, const Operand& operand, Piece piece, T* out) {
  const uint8_t* const data = static_cast<const uint8_t*>(operand.data);
  for_each_run(space, operand.stride, piece, [&](int at, int64_t offset, int64_t step, int len) {
    copy_run(data + offset, step, len, out + at);
  });
  pad(piece, out);
}

// Replaces masked elements with 0, even those that are infinite or NaN.
template <bool masked, typename T>
VAE_FUSED_HD Lanes<T> zero_if_masked(const T* mask, int j, Lanes<T> value) {
  if constexpr (!masked) return value;
  const Lanes<T> zero = T(0);
  return select(get(mask + j) == zero, zero, value);
}

// Returns a dense run if the arithmetic loops can use it in place, otherwise null. Copying values
// to and from buffers instead would take a quarter of the forward kernel's time.
template <typename T, typename S>
VAE_FUSED_HD T* in_place(S* run, const Piece& piece) {
  if constexpr (std::is_same_v<S, T>) {
    if (piece.n == piece.whole()) return run;
  }
  return nullptr;
}

// Returns the values of a piece, either in the tensor or copied to the buffer. Adds the values of
// the next piece to the prefetcher.
template <typename S, typename T>
VAE_FUSED_HD const T* load(const Space& space, const Operand& operand, const Piece& piece,
                           T* buffer, Prefetcher& prefetcher) {
  S* const run = dense<S>(space, operand, piece);
  if (run) prefetcher.add_next(run);
  if (const T* const values = in_place<T>(run, piece)) return values;
  copy_in<S>(space, operand, piece, buffer);
  return buffer;
}

// Returns where to compute the values of a piece: in the tensor or in the buffer. Values that are
// not written to a tensor are also computed in the buffer.
template <typename S, typename T>
VAE_FUSED_HD T* target(const Space& space, const Operand& operand, const Piece& piece, T* buffer,
                       Prefetcher& prefetcher) {
  S* const run = operand.data ? dense<S>(space, operand, piece) : nullptr;
  if (run) prefetcher.add(run);
  T* const values = in_place<T>(run, piece);
  return values ? values : buffer;
}

// Copies the values at `target` to the tensor, if there is one and it does not already contain
// them.
template <typename S, typename T>
VAE_FUSED_HD void store(const Space& space, const Operand& operand, const Piece& piece,
                        const T* target, const T* buffer) {
  if (operand.data && target == buffer) copy_out<S>(space, operand, piece, buffer);
}

// Returns the operand for one of the samples.
template <typename S>
VAE_FUSED_HD Operand operand_of_sample(const SampledOperand& operand, int64_t sample) {
  Operand result = operand;
  if (result.data) result.data = static_cast<S*>(operand.data) + sample * operand.step;
  return result;
}

constexpr int64_t kLongRun = 32;

// Generates the normals of a piece whose indices are not all consecutive. A step of `fill`
// generates up to 128 normals, so short runs and runs with other strides are combined into one call
// to `fill_at`.
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

// Returns the noise of a piece for one sample, either read from `eps` or generated from the key.
template <typename S, typename T>
VAE_FUSED_HD const T* load_noise(const Space& space, const SampledOperand& eps, const Key& key,
                                 int64_t sample, const Piece& piece, T* buffer,
                                 Prefetcher& prefetcher) {
  if (eps.data) return load<S>(space, operand_of_sample<S>(eps, sample), piece, buffer, prefetcher);
  const int64_t first = sample * space.rows * space.cols;
  if (space.has_contiguous_noise) {
    fill(key, first + piece.begin, piece.n, buffer, prefetcher);
  } else {
    fill_runs(space, key, first, piece, buffer, prefetcher);
  }
  pad(piece, buffer);
  return buffer;
}

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
