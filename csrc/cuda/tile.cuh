// From a tile to a thread's steps: N neighbouring elements in registers, and their noise.
//
// Memory is accessed in vectors of 16 bytes (4 float, 2 double, 8 of 16 bits), or in single
// elements.
#pragma once

#include <cstring>
#include <utility>

#include "cuda/access.cuh"

namespace vae_fused::cuda {

template <typename S, int N>
struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Pack {
  S s[N];
};

// The step of elements [e, e + N), e a multiple of N. Slots count from the step in which the tile
// begins: the step's is `slot`, the tile has [begin, end). Patches never leave their tile, nor do
// the steps of a tile of whole ones, kWhole: then there is nothing to ask.
template <bool kWhole = false>
struct Span {
  int64_t e;
  int slot, begin, end;

  __device__ __forceinline__ bool whole(int v) const {
    return kWhole || (slot >= begin && slot + v <= end);
  }
  __device__ __forceinline__ bool has(int j) const {
    return kWhole || (slot + j >= begin && slot + j < end);
  }
  __device__ __forceinline__ Span operator+(int j) const { return {e + j, slot + j, begin, end}; }
};

template <int N>
__device__ __forceinline__ bool is_whole(const Tile& tile) {
  return ((tile.begin | tile.n) & (N - 1)) == 0;
}

// The first of the calling thread's steps in a tile; `kThreads * N` further on is the next.
template <int N, bool kWhole = false>
__device__ __forceinline__ Span<kWhole> first_span(const Tile& tile) {
  const int begin = kWhole ? 0 : static_cast<int>(tile.begin & (N - 1)), slot = threadIdx.x * N;
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

// Elements outside of the tile are 0. Not `aligned`: an element at a time.
template <typename S, int V, bool kWhole>
__device__ __forceinline__ Pack<S, V> load_vector(const S* data, const Span<kWhole>& span,
                                                  bool aligned = true) {
  Pack<S, V> pack;
  if (V == 1 || (aligned && span.whole(V))) {
    pack = *reinterpret_cast<const Pack<S, V>*>(data);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) pack.s[j] = span.has(j) ? data[j] : S{};
  }
  return pack;
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
  if (V == 1 || (aligned && span.whole(V))) {
    store_whole(data, pack);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) {
      if (span.has(j)) data[j] = pack.s[j];
    }
  }
}

// A step of an operand, at its offset: a vector, or a patch of C of them. S is the dtype of the
// call, E that of the operand. With kSplats a value may be broadcast along the vector.
template <typename S, Access kAccess, bool kSplats = false, typename E = S, bool kWhole>
__device__ __forceinline__ Pack<E, kStep<S, kAccess>> load(const Space& space,
                                                           const Operand& operand, int64_t offset,
                                                           const Span<kWhole>& span) {
  constexpr int V = kVector<S, kAccess>, C = kChunk<S, kAccess>;
  const E* const data = static_cast<const E*>(operand.data) + offset;
  if constexpr (kAccess == Access::kPatched) {
    const bool splats = kSplats && operand.stride[space.ndim - 2] == 0;
    Pack<E, V * C> patch;
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      const E* const at = data + j * operand.stride[space.ndim - 1];
      Pack<E, V> vector;
      if (splats) {
        VAE_FUSED_UNROLL
        for (int b = 0; b < V; ++b) vector.s[b] = *at;
      } else {
        vector = *reinterpret_cast<const Pack<E, V>*>(at);
      }
      VAE_FUSED_UNROLL
      for (int b = 0; b < V; ++b) patch.s[b * C + j] = vector.s[b];
    }
    return patch;
  } else {
    if (kSplats && V > 1 && operand.stride[space.ndim - 1] == 0) {
      const E value = *data;
      Pack<E, V> pack;
      VAE_FUSED_UNROLL
      for (int j = 0; j < V; ++j) pack.s[j] = value;
      return pack;
    }
    return load_vector<E, V>(data, span);
  }
}

// Chunk `b` of a step of sample s > 0, where samples are: never in patches.
template <typename S, Access kAccess, bool kWhole>
__device__ __forceinline__ Pack<S, kChunk<S, kAccess>> load_chunk(const Space& space,
                                                                  const Sampled& operand,
                                                                  int64_t offset, int64_t sample,
                                                                  int b, const Span<kWhole>& span) {
  constexpr int C = kChunk<S, kAccess>;
  const S* const data = static_cast<const S*>(operand.data) + offset + sample * operand.step;
  if (C > 1 && operand.stride[space.ndim - 1] == 0) {
    Pack<S, C> pack;
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) pack.s[j] = *data;
    return pack;
  }
  return load_vector<S, C>(data + b * C, span + b * C);
}

template <typename S, Access kAccess, bool kWhole>
__device__ __forceinline__ void store_chunk(const Sampled& operand, int64_t offset, int64_t sample,
                                            int b, const Span<kWhole>& span,
                                            const Pack<S, kChunk<S, kAccess>>& pack) {
  constexpr int C = kChunk<S, kAccess>;
  S* const data = static_cast<S*>(operand.data) + offset + sample * operand.step;
  store_vector<S, C>(data + b * C, span + b * C, pack);
}

template <typename S, Access kAccess, bool kWhole>
__device__ __forceinline__ void store(const Space& space, const Operand& operand, int64_t offset,
                                      const Span<kWhole>& span,
                                      const Pack<S, kStep<S, kAccess>>& pack) {
  constexpr int V = kVector<S, kAccess>, C = kChunk<S, kAccess>;
  S* const data = static_cast<S*>(operand.data) + offset;
  if constexpr (kAccess == Access::kPatched) {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      Pack<S, V> vector;
      VAE_FUSED_UNROLL
      for (int b = 0; b < V; ++b) vector.s[b] = pack.s[b * C + j];
      store_whole(data + j * operand.stride[space.ndim - 1], vector);
    }
  } else {
    store_vector<S, V>(data, span, pack);
  }
}

// Whether 16-bit elements are taken from their pack by twos. Where a pack was put together from single
// elements, it is better taken apart so.
template <typename S, Access kAccess>
constexpr bool kPairs = sizeof(S) == 2 && kAccess == Access::kLinear;

// Chunk b of a pack.
template <Access kAccess, int C, typename S, int N>
__device__ __forceinline__ void widen(const Pack<S, N>& in, int b, arithmetic_t<S> (&out)[C]) {
  if constexpr (kPairs<S, kAccess>) {
    math::Pair<S> pairs[N / 2];
    std::memcpy(pairs, &in, sizeof pairs);
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; j += 2) math::widen(pairs[(b * C + j) / 2], out[j], out[j + 1]);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) out[j] = math::widen(in.s[b * C + j]);
  }
}

template <Access kAccess, int C, typename S, int N>
__device__ __forceinline__ void narrow(const arithmetic_t<S> (&in)[C], int b, Pack<S, N>& out) {
  if constexpr (kPairs<S, kAccess>) {
    math::Pair<S> pairs[N / 2];
    std::memcpy(pairs, &out, sizeof pairs);
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; j += 2) math::narrow(in[j], in[j + 1], pairs[(b * C + j) / 2]);
    std::memcpy(&out, pairs, sizeof pairs);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) math::narrow(in[j], out.s[b * C + j]);
  }
}

// The key that a call has used, for its backward: written by the launch's first thread.
__device__ __forceinline__ void write_key(const Key& key, uint64_t* out) {
  if (!out || blockIdx.x != 0 || threadIdx.x != 0) return;
  out[0] = key.seed;
  out[1] = key.offset;
}

// From a chunk of a step to the next, in the stream of normals.
template <typename S, Access kAccess>
__device__ __forceinline__ int64_t chunk_stride(const Space& space) {
  return kAccess == Access::kPatched ? space.noise_stride[space.ndim - 2] : kChunk<S, kAccess>;
}

// The stream of a key. With kKept the rounds' keys are a warp's 20 uniform registers, and no
// instruction of the loop: as sums, even of uniform registers, the compiler computes them again for
// each block of noise, 18 additions for 4 floats.
template <bool kKept>
class Stream {
 public:
  __device__ __forceinline__ explicit Stream(const Key& key) : key_(key) {
    if constexpr (kKept) {
      const math::Seed seed(key.seed);
      keep(seed, std::make_integer_sequence<int, math::kRounds>());
    }
  }

  // Normals `index` to `index + C`: a block, or one.
  template <typename S, int C>
  __device__ __forceinline__ void normals(uint64_t index, arithmetic_t<S> (&out)[C]) const {
    constexpr bool coarse = math::kCoarse<S>;
    if constexpr (C == 1) {
      out[0] = math::normal_at<arithmetic_t<S>, coarse>(key_.seed, key_.offset, index);
    } else if constexpr (kKept) {
      math::normals<coarse>(math::philox(kept_, key_.offset + index / C), out);
    } else {
      math::normals<coarse>(math::philox(math::Seed(key_.seed), key_.offset + index / C), out);
    }
  }

 private:
  template <int... r>
  __device__ __forceinline__ void keep(const math::Seed& seed, std::integer_sequence<int, r...>) {
    kept_ = {{{warp_uniform(seed.first<r>()), warp_uniform(seed.second<r>())}...}};
  }

  struct None {};
  Key key_;
  std::conditional_t<kKept, math::RoundKeys, None> kept_{};
};

}  // namespace vae_fused::cuda
