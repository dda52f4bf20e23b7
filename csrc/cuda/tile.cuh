// From a tile to a thread's vectors: V neighbouring elements in registers, and their noise.
//
// V is 16 bytes' worth (4 float, 2 double, 8 of 16 bits), or 1. The host decides for all tensors of
// a call at once (see Access), so that no thread ever looks at a layout or an alignment.
#pragma once

#include <initializer_list>

#include "cuda/launch.cuh"
#include "math/normal.h"
#include "math/storage.h"
#include "params.h"

namespace vae_fused::cuda {

using math::arithmetic_t;

// How a kernel reads and writes.
enum class Access {
  kLinear,   // the usual call: every tensor there, contiguous and aligned; noise from the key
  kStrided,  // vectors, too, wherever innermost runs consist of whole ones; tensors may be absent
  kScalar,   // anything, an element at a time
};

template <typename S, Access kAccess>
constexpr int kVector = kAccess == Access::kScalar ? 1 : 16 / sizeof(S);

// Arithmetic goes through a vector in chunks of a block of noise.
template <typename S, Access kAccess>
constexpr int kChunk = kAccess == Access::kScalar ? 1 : math::kNormalsPerBlock<arithmetic_t<S>>;

// Blocks on an SM at least, which bounds the registers: to 128, 64 and 80. Without a bound the
// compiler interleaves the chunks of a 16-bit vector, takes 100, and halves the loads in flight; a
// block more, and some architecture spills.
template <typename S>
constexpr int kBlocks = sizeof(S) == 8   ? 2
                        : sizeof(S) == 4 ? 4
                                         : 3;

template <typename S, int V>
struct alignas(sizeof(S) * V) Pack {
  S s[V];
};

// -------------------------------------------------------------------------------------------------
// host
// -------------------------------------------------------------------------------------------------

// Whether the innermost runs of a tensor consist of whole vectors.
inline bool whole_runs(const Space& space, const int64_t* stride, int v) {
  const int inner = space.ndim - 1;
  if (stride[inner] != 1 || space.size[inner] % v != 0) return false;
  for (int d = 0; d < inner; ++d) {
    if (stride[d] % v != 0) return false;
  }
  return true;
}

inline bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// `rows` is what has a value for each row: read and written in vectors where a row is an element.
// `usual`: the call has every tensor that it can have, but noise from the key.
inline Access access_of(const Space& space, std::initializer_list<const Operand*> operands,
                        const void* rows, bool usual, bool needs_noise, int v) {
  if (space.cols == 1 && !aligned(rows)) return Access::kScalar;
  // Where all is linear there is one dimension, which need not consist of whole vectors.
  const auto vectors = [&](const int64_t* stride, bool linear) {
    return space.ndim == 1 ? linear : whole_runs(space, stride, v);
  };
  if (needs_noise && !vectors(space.noise_stride, space.noise_linear)) return Access::kScalar;
  for (const Operand* operand : operands) {
    if (!operand->data) continue;
    if (!aligned(operand->data) || !vectors(operand->stride, operand->linear)) {
      return Access::kScalar;
    }
  }
  return usual && space.ndim == 1 ? Access::kLinear : Access::kStrided;
}

// -------------------------------------------------------------------------------------------------
// device
// -------------------------------------------------------------------------------------------------

// The vector of elements [e, e + V), e a multiple of V. Slots count from the vector in which the
// tile begins: the vector's is `slot`, the tile has [begin, end).
struct Span {
  int64_t e;
  int slot, begin, end;

  __device__ __forceinline__ bool whole(int v) const { return slot >= begin && slot + v <= end; }
  __device__ __forceinline__ bool has(int j) const { return slot + j >= begin && slot + j < end; }
  __device__ __forceinline__ Span operator+(int j) const { return {e + j, slot + j, begin, end}; }
};

// The first of the calling thread's vectors in a tile; `kThreads * V` further on is the next.
template <int V>
__device__ __forceinline__ Span first_span(const Tile& tile) {
  const int begin = static_cast<int>(tile.begin & (V - 1)), slot = threadIdx.x * V;
  return {tile.begin - begin + slot, slot, begin, begin + tile.n};
}

// The offsets of element e in N tensors.
template <Access kAccess, int N>
__device__ __forceinline__ void locate(const Space& space, const int64_t* const (&strides)[N],
                                       int64_t e, int64_t (&offsets)[N]) {
  if constexpr (kAccess == Access::kLinear) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) offsets[k] = e;
  } else {
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) offsets[k] = 0;
    for (int d = space.ndim - 1; d > 0; --d) {
      const int64_t outer = e / space.by_size[d];
      const int64_t coordinate = e - outer * space.size[d];
      VAE_FUSED_UNROLL
      for (int k = 0; k < N; ++k) offsets[k] += coordinate * strides[k][d];
      e = outer;
    }
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) offsets[k] += e * strides[k][0];
  }
}

// Elements outside of the tile are 0.
template <typename S, int V>
__device__ __forceinline__ Pack<S, V> load(const S* data, const Span& span) {
  Pack<S, V> pack;
  if (V == 1 || span.whole(V)) {
    pack = *reinterpret_cast<const Pack<S, V>*>(data);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) pack.s[j] = span.has(j) ? data[j] : S{};
  }
  return pack;
}

template <typename S, int V>
__device__ __forceinline__ void store(S* data, const Span& span, const Pack<S, V>& pack) {
  if (V == 1 || span.whole(V)) {
    *reinterpret_cast<Pack<S, V>*>(data) = pack;
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) {
      if (span.has(j)) data[j] = pack.s[j];
    }
  }
}

template <int C, typename S, int V>
__device__ __forceinline__ void widen(const Pack<S, V>& in, int b, arithmetic_t<S> (&out)[C]) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < C; ++j) out[j] = math::widen(in.s[b * C + j]);
}

template <int C, typename S, int V>
__device__ __forceinline__ void narrow(const arithmetic_t<S> (&in)[C], int b, Pack<S, V>& out) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < C; ++j) math::narrow(in[j], out.s[b * C + j]);
}

// Normals `index` to `index + C` of the stream: a block of it, or one.
template <typename T, int C>
__device__ __forceinline__ void normals(const Key& key, uint64_t index, T (&out)[C]) {
  if constexpr (C == 1) {
    out[0] = math::normal_at<T>(key.seed, key.offset, index);
  } else {
    math::normals(math::philox(key.seed, key.offset + index / C), out);
  }
}

}  // namespace vae_fused::cuda
