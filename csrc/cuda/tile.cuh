// Divides a tile into the steps of its threads. A step consists of N neighbouring elements, which a
// thread holds in registers.
//
// Steps access memory in vectors of 16 bytes (4 floats, 2 doubles or 8 16-bit elements), in vectors
// of two channels for channels_last, or one element at a time.
#pragma once

#include <cstring>

#include "cuda/pack.cuh"
#include "cuda/ptx.cuh"

namespace vae_fused::cuda {

// The step of elements [e, e + N), where e is a multiple of N. Slots count elements from the start
// of the step in which the tile begins. This span's step starts at `slot`, and the tile occupies
// the slots [begin, end).
template <bool kWhole = false>
struct Span {
  int64_t first;  // the element that begins slot 0
  int slot, begin, end;

  __device__ __forceinline__ int64_t element() const { return first + slot; }
  __device__ __forceinline__ int in_tile() const { return slot - begin; }
  __device__ __forceinline__ bool whole(int v) const { return slot >= begin && slot + v <= end; }
  __device__ __forceinline__ bool has(int j) const { return slot + j >= begin && slot + j < end; }
  __device__ __forceinline__ Span operator+(int j) const { return {first, slot + j, begin, end}; }
  // Returns the span in units of k elements, for a tile that consists of whole groups of k.
  __device__ __forceinline__ Span operator/(int k) const {
    return {first / k, slot / k, begin / k, end / k};
  }
};

// A step in a tile of whole steps, which needs no bounds checks.
template <>
struct Span<true> {
  int64_t first;
  uint32_t slot, end;

  __device__ __forceinline__ int64_t element() const { return first + slot; }
  __device__ __forceinline__ int in_tile() const { return static_cast<int>(slot); }
  __device__ __forceinline__ bool whole(int) const { return true; }
  __device__ __forceinline__ bool has(int) const { return true; }
  __device__ __forceinline__ Span operator+(int j) const { return {first, slot + j, end}; }
  __device__ __forceinline__ Span operator/(int k) const { return {first / k, slot / k, end / k}; }
};

// Returns tile t of a call. If rows consist of tiles, a call has at most about 4000 tiles
// (`merge_tiles`), so that 32 bits are enough.
__device__ __forceinline__ Tile tile_of(const Space& space, int64_t t) {
  if (space.tiles_per_row == 1) return tile_of_rows(space, t);
  const uint32_t block = static_cast<uint32_t>(t);
  const uint32_t row = quotient(block, space.tiles_per_row_divisor);
  return tile_of_row(space, row, block - row * static_cast<uint32_t>(space.tiles_per_row));
}

// A constant as a type. The conversion operator of std::integral_constant cannot be used, because
// it is a host function.
template <auto kValue>
struct Constant {
  __device__ __forceinline__ constexpr operator decltype(kValue)() const { return kValue; }
};

template <int N>
__device__ __forceinline__ bool is_whole(const Tile& tile) {
  return ((tile.begin | tile.n) & (N - 1)) == 0;
}

// Returns the calling thread's first step in a tile. Its next step is `kThreads * N` elements
// later.
template <int N, bool kWhole = false>
__device__ __forceinline__ Span<kWhole> first_span(const Tile& tile) {
  if constexpr (kWhole) {
    return {tile.begin, threadIdx.x * N, static_cast<uint32_t>(tile.n)};
  } else {
    const int begin = static_cast<int>(tile.begin & (N - 1)), slot = threadIdx.x * N;
    return {tile.begin - begin, slot, begin, begin + tile.n};
  }
}

// Returns the address of a step in a tensor. In a contiguous tile of whole steps, it is a base
// address that all threads share, plus a 32-bit offset per thread, instead of a 64-bit offset for
// each tensor. The offset, in bytes, fits in 32 bits, because a tile has 2^30 elements only in a
// call with 2^41 elements (`merge_tiles`).
template <typename S, Access kAccess, bool kWhole>
__device__ __forceinline__ S* address(void* data, int64_t offset, const Span<kWhole>& span) {
  if constexpr (kAccess == Access::kContiguous && kWhole) {
    char* const tile = static_cast<char*>(data) + span.first * int64_t{sizeof(S)};
    return reinterpret_cast<S*>(tile + span.slot * uint32_t{sizeof(S)});
  } else {
    return static_cast<S*>(data) + offset;
  }
}

// Computes the offsets of an element in N tensors, with integers of type I. `rest` is initially the
// flat index of the element, and later the quotient, which is the index in the dimensions that have
// not been visited yet.
template <typename I, int N>
struct Offsets {
  I rest, sums[N] = {};

  __device__ __forceinline__ explicit Offsets(I e) : rest(e) {}

  __device__ __forceinline__ void along(const Space& space, const int64_t* const (&strides)[N],
                                        int d) {
    const I outer = d > 0 ? rest / space.size_divisor[d] : I{0};
    const I coordinate = d > 0 ? rest + outer * (I{0} - static_cast<I>(space.size[d])) : rest;
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) sums[k] += coordinate * static_cast<I>(strides[k][d]);
    rest = outer;
  }
};

// Computes the offsets of the step at element e. Views that are accessed in vectors have offsets
// below 2^31 (`select_kernel`), for which each dimension costs about 20 instructions per step. With
// 64-bit offsets, which single elements may need, each dimension costs 45 instructions. If there is
// only one dimension, it costs none. The first element of a kChannelsLast step has coordinate 0 in
// the last dimension, which is therefore skipped. On the fast path, the loop over dimensions is
// unrolled, which takes a third of the instructions.
template <typename S, Access kAccess, bool kFast, int N>
__device__ __forceinline__ void locate(const Space& space, const int64_t* const (&strides)[N],
                                       int64_t e, int64_t (&offsets)[N]) {
  constexpr bool kChannelsLast = kAccess == Access::kChannelsLast;
  constexpr uint32_t kInLast = kChannelsLast ? kChunk<S, kAccess> : 1;
  constexpr bool kNarrow = sizeof(S) < 8;  // double kernels have time for 64-bit integers
  const auto by = [&](auto first, int last) {
    Offsets<decltype(first), N> at(first);
    if constexpr (kFast) {
      VAE_FUSED_UNROLL
      for (int d = kFastDims<kAccess> - kChannelsLast - 1; d >= 0; --d) at.along(space, strides, d);
    } else {
#pragma unroll 1
      for (int d = last; d > 0; --d) at.along(space, strides, d);
      at.along(space, strides, 0);
    }
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) offsets[k] = at.sums[k];
  };
  const int last = space.ndim - (kChannelsLast ? 2 : 1);
  if (kAccess == Access::kContiguous) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) offsets[k] = e;
  } else if (kNarrow && !kFast && !kChannelsLast && last == 0) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) offsets[k] = e * strides[k][0];
  } else if (kNarrow && (kAccess != Access::kScalar || space.has_32_bit_offsets)) {
    by(static_cast<uint32_t>(e) / kInLast, last);
  } else {
    by(static_cast<int64_t>(static_cast<uint64_t>(e) / kInLast), last);
  }
}

// Loads a vector and sets elements outside the tile to 0. If not `aligned`, it loads one element at
// a time. Here and below, the pack is an output argument, because nvcc splits a returned pack, and
// a loop then carries halves of registers.
template <typename S, int V, bool kWhole>
__device__ __forceinline__ void load_vector(const S* data, const Span<kWhole>& span,
                                            Pack<S, V>& pack, bool aligned = true) {
  if (aligned && span.whole(V)) {
    if constexpr (sizeof pack == sizeof(uint4)) {
      const uint4 words = *reinterpret_cast<const uint4*>(data);
      std::memcpy(&pack, &words, sizeof words);
    } else {
      pack = *reinterpret_cast<const Pack<S, V>*>(data);
    }
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) pack.s[j] = span.has(j) ? data[j] : S{};
  }
}

template <typename S, int V>
__device__ __forceinline__ void store_whole(S* data, const Pack<S, V>& pack) {
  if constexpr (sizeof(pack) == sizeof(uint4)) {
    uint4 words;
    std::memcpy(&words, &pack, sizeof words);
    store_16_bytes(data, words);
  } else {
    *reinterpret_cast<Pack<S, V>*>(data) = pack;
  }
}

template <typename S, int V, bool kWhole>
__device__ __forceinline__ void store_vector(S* data, const Span<kWhole>& span,
                                             const Pack<S, V>& pack, bool aligned = true) {
  if (aligned && span.whole(V)) {
    store_whole(data, pack);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) {
      if (span.has(j)) data[j] = pack.s[j];
    }
  }
}

// Returns the low word of an integer in memory. For a cast, nvcc would emit 64-bit arithmetic and a
// mask.
__device__ __forceinline__ uint32_t low_word(const int64_t& number) {
  uint32_t low;
  std::memcpy(&low, &number, sizeof low);
  return low;
}

// Returns the address of vector j of a kChannelsLast step. On the fast path, all offsets are below
// 2^31.
template <Access kAccess, bool kFast, typename E>
__device__ __forceinline__ E* vector_of(const Space& space, const Operand& operand, int64_t offset,
                                        int j) {
  E* const data = static_cast<E*>(operand.data);
  if constexpr (kFast) {
    const uint32_t stride = low_word(operand.stride[kFastDims<kAccess> - 1]);
    return data + (static_cast<uint32_t>(offset) + j * stride);
  }
  return data + offset + j * operand.stride[space.ndim - 1];
}

// Loads a step of an operand from its offset: a vector, or, with kChannelsLast, the vectors of C
// pixels. S is the storage type of the call, and E is that of the operand. With kMayBroadcast, a
// value may be broadcast along the vector.
template <typename S, Access kAccess, bool kFast, bool kMayBroadcast = false, typename E = S,
          bool kWhole>
__device__ __forceinline__ void load(const Space& space, const Operand& operand, int64_t offset,
                                     const Span<kWhole>& span, Pack<E, kStep<S, kAccess>>& pack) {
  constexpr int V = kVector<S, kAccess>, C = kChunk<S, kAccess>;
  const E* const data = address<E, kAccess>(operand.data, offset, span);
  if constexpr (kAccess == Access::kChannelsLast) {
    const bool broadcasts_inner = kMayBroadcast && operand.stride[space.ndim - 2] == 0;
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      const E* const at = vector_of<kAccess, kFast, E>(space, operand, offset, j);
      Pack<E, V> vector;
      if (broadcasts_inner) {
        VAE_FUSED_UNROLL
        for (int b = 0; b < V; ++b) vector.s[b] = *at;
      } else {
        vector = *reinterpret_cast<const Pack<E, V>*>(at);
      }
      std::memcpy(pack.s + j * V, &vector, sizeof vector);
    }
  } else if (kMayBroadcast && V > 1 && operand.stride[space.ndim - 1] == 0) {
    const E value = *data;
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) pack.s[j] = value;
  } else {
    load_vector(data, span, pack);
  }
}

// Loads chunk b of a step for a sample after the first. Calls with several samples never use
// kChannelsLast.
template <typename S, Access kAccess, bool kWhole>
__device__ __forceinline__ void load_chunk(const Space& space, const SampledOperand& operand,
                                           int64_t offset, int64_t sample, int b,
                                           const Span<kWhole>& span,
                                           Pack<S, kChunk<S, kAccess>>& pack) {
  constexpr int C = kChunk<S, kAccess>;
  const S* const data = static_cast<const S*>(operand.data) + offset + sample * operand.step;
  if (C > 1 && operand.stride[space.ndim - 1] == 0) {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) pack.s[j] = *data;
  } else {
    load_vector(data + b * C, span + b * C, pack);
  }
}

template <typename S, Access kAccess, bool kWhole>
__device__ __forceinline__ void store_chunk(const SampledOperand& operand, int64_t offset,
                                            int64_t sample, int b, const Span<kWhole>& span,
                                            const Pack<S, kChunk<S, kAccess>>& pack) {
  constexpr int C = kChunk<S, kAccess>;
  S* const data = static_cast<S*>(operand.data) + offset + sample * operand.step;
  store_vector<S, C>(data + b * C, span + b * C, pack);
}

// Stores the step at `offset` of 16-bit latents with four channels. The thread holds two channels
// of 4 pixels, and its neighbour holds the other two. Their kElementsOfThreadPair elements are
// contiguous and start at a multiple of that number (`select_kernel`). Four 4-byte stores would
// write each 32-byte sector a quarter at a time, and the L2 cache takes as long to write a quarter
// as a whole sector. The two threads therefore exchange halves, and each stores two whole pixels,
// 16 bytes.
template <typename S>
__device__ __forceinline__ void store_pixels(S* data, uint32_t offset, const Span<true>& span,
                                             const Pack<S, 8>& pack) {
  uint32_t words[4], got[2];
  std::memcpy(words, &pack, sizeof words);
  const bool second = span.slot & 8;
  VAE_FUSED_UNROLL
  for (int j = 0; j < 2; ++j) {
    got[j] = __shfl_xor_sync(0xFFFFFFFFu, second ? words[j] : words[j + 2], 1);
  }
  constexpr uint32_t kMask = kElementsOfThreadPair - 1;
  store_16_bytes(data + ((offset & ~kMask) | (span.slot & kMask)),
                 second ? uint4{got[0], words[2], got[1], words[3]}
                        : uint4{words[0], got[0], words[1], got[1]});
}

template <typename S, Access kAccess, bool kFast, bool kWhole>
__device__ __forceinline__ void store(const Space& space, const Operand& operand, int64_t offset,
                                      const Span<kWhole>& span,
                                      const Pack<S, kStep<S, kAccess>>& pack) {
  constexpr int V = kVector<S, kAccess>, C = kChunk<S, kAccess>;
  if constexpr (kAccess == Access::kChannelsLast) {
    if constexpr (kFast && sizeof(S) == 2) {
      if (space.pixel_pairs) {
        S* const data = static_cast<S*>(operand.data);
        return store_pixels(data, static_cast<uint32_t>(offset), span, pack);
      }
    }
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      Pack<S, V> vector;
      std::memcpy(&vector, pack.s + j * V, sizeof vector);
      store_whole(vector_of<kAccess, kFast, S>(space, operand, offset, j), vector);
    }
  } else {
    store_vector<S, V>(address<S, kAccess>(operand.data, offset, span), span, pack);
  }
}

}  // namespace vae_fused::cuda
