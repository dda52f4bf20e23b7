// Moving V neighbouring elements between a tensor and a thread's registers, and making their noise.
//
// V is either 16 bytes' worth (4 float, 2 double, 8 of 16 bits) or 1. `vectorises` decides on the
// host, for all operands of a call at once, so no thread ever looks at alignment.
#pragma once

#include "cuda/launch.cuh"
#include "math/normal.h"
#include "math/storage.h"
#include "params.h"

namespace vae_fused::cuda {

using math::arithmetic_t;

template <typename S>
constexpr int kVector = 16 / sizeof(S);

template <typename S, int V>
struct alignas(sizeof(S) * V) Pack {
  S s[V];
};

// -------------------------------------------------------------------------------------------------
// host
// -------------------------------------------------------------------------------------------------

// Whether flat elements [e, e + v), e a multiple of v within its tile, are one aligned access.
inline bool vectorises(const Space& space, const Operand& operand, int v, int element_size) {
  if (!operand.data) return true;
  if (reinterpret_cast<uintptr_t>(operand.data) % (v * element_size) != 0) return false;
  if (operand.linear) return true;
  const int inner = space.ndim - 1;
  if (operand.stride[inner] != 1 || space.size[inner] % v != 0) return false;
  for (int d = 0; d < inner; ++d) {
    if (operand.stride[d] % v != 0) return false;
  }
  return true;
}

// Whether tiles begin at multiples of v, and v elements are normals of whole Philox blocks.
inline bool space_vectorises(const Space& space, bool needs_noise, int v) {
  const int64_t step = space.tiles_per_row > 1 ? space.cols : space.rows_per_tile * space.cols;
  if (space.tiles > 1 && step % v != 0) return false;
  if (!needs_noise || space.noise_linear) return true;
  const int inner = space.ndim - 1;
  if (space.noise_stride[inner] != 1 || space.size[inner] % v != 0) return false;
  for (int d = 0; d < inner; ++d) {
    if (space.noise_stride[d] % v != 0) return false;
  }
  return true;
}

// -------------------------------------------------------------------------------------------------
// device
// -------------------------------------------------------------------------------------------------

__device__ __forceinline__ int64_t offset_of(const Space& space, const int64_t* stride, int64_t e) {
  int64_t offset = 0;
  for (int d = space.ndim - 1; d > 0; --d) {
    const int64_t next = e / space.size[d];
    offset += (e - next * space.size[d]) * stride[d];
    e = next;
  }
  return offset + e * stride[0];
}

// Elements [e, e + n) of n <= V; those beyond n are 0.
template <int V, typename S>
__device__ __forceinline__ void load(const Space& space, const Operand& operand, int64_t e, int n,
                                     arithmetic_t<S> (&out)[V]) {
  const S* data = static_cast<const S*>(operand.data) +
                  (operand.linear ? e : offset_of(space, operand.stride, e));
  if (n == V) {
    const Pack<S, V> pack = *reinterpret_cast<const Pack<S, V>*>(data);
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) out[j] = math::widen(pack.s[j]);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) out[j] = j < n ? math::widen(data[j]) : arithmetic_t<S>(0);
  }
}

template <int V, typename S>
__device__ __forceinline__ void store(const Space& space, const Operand& operand, int64_t e, int n,
                                      const arithmetic_t<S> (&values)[V]) {
  S* data =
      static_cast<S*>(operand.data) + (operand.linear ? e : offset_of(space, operand.stride, e));
  if (n == V) {
    Pack<S, V> pack;
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) math::narrow(values[j], pack.s[j]);
    *reinterpret_cast<Pack<S, V>*>(data) = pack;
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) {
      if (j < n) math::narrow(values[j], data[j]);
    }
  }
}

// The noise of the V elements from e on: explicit, or from the key. A vector is whole blocks.
template <int V, typename S>
__device__ __forceinline__ void load_noise(const Space& space, const Operand& eps, const Key& key,
                                           int64_t e, int n, arithmetic_t<S> (&out)[V]) {
  using T = arithmetic_t<S>;
  if (eps.data) return load<V, S>(space, eps, e, n, out);
  const uint64_t index = space.noise_linear ? e : offset_of(space, space.noise_stride, e);
  if constexpr (V == 1) {
    out[0] = math::normal_at<T>(key.seed, key.offset, index);
  } else {
    constexpr int kPer = math::kNormalsPerBlock<T>;
    static_assert(V % kPer == 0, "a vector is whole blocks of noise");
    VAE_FUSED_UNROLL
    for (int b = 0; b < V / kPer; ++b) {
      T block[kPer];
      math::normals(math::philox(key.seed, key.offset + index / kPer + b), block);
      VAE_FUSED_UNROLL
      for (int j = 0; j < kPer; ++j) out[b * kPer + j] = block[j];
    }
  }
}

// The row and column of a tile's element, in 32 bits, and the step to the next element.
struct RowCursor {
  uint32_t row, col, cols;

  __device__ __forceinline__ RowCursor(const Space& space, int at)
      : row(0), col(0), cols(static_cast<uint32_t>(space.cols)) {
    if (space.tiles_per_row == 1) {
      row = static_cast<uint32_t>(at) / cols;
      col = static_cast<uint32_t>(at) - row * cols;
    }
  }
  // In a tile that is part of a row, every element is in row 0.
  __device__ __forceinline__ void next(const Space& space) {
    if (space.tiles_per_row == 1 && ++col == cols) {
      col = 0;
      ++row;
    }
  }
};

}  // namespace vae_fused::cuda
