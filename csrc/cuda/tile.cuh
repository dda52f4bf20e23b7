// From a tile to a thread's steps: N neighbouring elements in registers, and their noise.
//
// Memory is accessed in vectors of 16 bytes (4 float, 2 double, 8 of 16 bits), or in single
// elements.
#pragma once

#include <cstring>

#include "cuda/access.cuh"

namespace vae_fused::cuda {

template <typename S, int N>
struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Pack {
  S s[N];
};

// The step of elements [e, e + N), e a multiple of N. Slots count from the step in which the tile
// begins: the step's is `slot`, the tile has [begin, end).
template <bool kWhole = false>
struct Span {
  int64_t first;  // the element that begins slot 0
  int slot, begin, end;

  __device__ __forceinline__ int64_t e() const { return first + slot; }
  __device__ __forceinline__ int in_tile() const { return slot - begin; }
  __device__ __forceinline__ bool whole(int v) const { return slot >= begin && slot + v <= end; }
  __device__ __forceinline__ bool has(int j) const { return slot + j >= begin && slot + j < end; }
  __device__ __forceinline__ Span operator+(int j) const { return {first, slot + j, begin, end}; }
};

// The same in a tile of whole steps, kWhole: there is nothing to ask.
template <>
struct Span<true> {
  int64_t first;
  uint32_t slot, end;

  __device__ __forceinline__ int64_t e() const { return first + slot; }
  __device__ __forceinline__ int in_tile() const { return static_cast<int>(slot); }
  __device__ __forceinline__ bool whole(int) const { return true; }
  __device__ __forceinline__ bool has(int) const { return true; }
  __device__ __forceinline__ Span operator+(int j) const { return {first, slot + j, end}; }
};

// The tile of a block, or number t of those that a block goes through. A launch has fewer than 2^31
// blocks, and of parts of rows each has one.
__device__ __forceinline__ Tile tile_of(const Space& space, int64_t t) {
  if (space.tiles_per_row == 1) return tile_of_rows(space, t);
  const uint32_t block = static_cast<uint32_t>(t);
  const uint32_t row = quotient(block, space.by_tiles_per_row);
  return tile_of_row(space, row, block - row * static_cast<uint32_t>(space.tiles_per_row));
}

template <int N>
__device__ __forceinline__ bool is_whole(const Tile& tile) {
  return ((tile.begin | tile.n) & (N - 1)) == 0;
}

// The first of the calling thread's steps in a tile; `kThreads * N` further on is the next.
template <int N, bool kWhole = false>
__device__ __forceinline__ Span<kWhole> first_span(const Tile& tile) {
  if constexpr (kWhole) {
    return {tile.begin, threadIdx.x * N, static_cast<uint32_t>(tile.n)};
  } else {
    const int begin = static_cast<int>(tile.begin & (N - 1)), slot = threadIdx.x * N;
    return {tile.begin - begin, slot, begin, begin + tile.n};
  }
}

// Calls visit with the first of the calling thread's steps in a tile, of which as little as can be
// is asked.
template <typename S, Access kAccess, class F, typename Visit>
__device__ __forceinline__ void with_first_span(const Space& space, const Tile& tile,
                                                const Visit& visit) {
  constexpr int N = kStep<S, kAccess>;
  constexpr Whole whole = kWholeSteps<S, kAccess, F>;
  if constexpr (whole != Whole::kUnknown) {
    if (whole == Whole::kAlways || space.ndim > 1) return visit(first_span<N, true>(tile));
  }
  if constexpr (whole != Whole::kAlways) visit(first_span<N>(tile));
}

// Where a step begins in a tensor. In a linear tile of whole ones: what all threads have in common,
// and 32 bits of a thread's own, instead of a 64-bit offset for each tensor. They are bytes: a tile
// of 2^30 elements would be one of 2^41 (`merge_tiles`).
template <typename S, Access kAccess, bool kWhole>
__device__ __forceinline__ S* address(void* data, int64_t offset, const Span<kWhole>& span) {
  if constexpr (kAccess == Access::kLinear && kWhole) {
    char* const tile = static_cast<char*>(data) + span.first * int64_t{sizeof(S)};
    return reinterpret_cast<S*>(tile + span.slot * uint32_t{sizeof(S)});
  } else {
    return static_cast<S*>(data) + offset;
  }
}

// The offsets of element `rest` of dimensions 0 to `last` in N tensors, by arithmetic of type I.
template <typename I, int N>
__device__ __forceinline__ void locate_as(const Space& space, const int64_t* const (&strides)[N],
                                          int last, I rest, int64_t (&offsets)[N]) {
  I sums[N] = {};
#pragma unroll 1
  for (int d = last; d > 0; --d) {
    const I outer = rest / space.by_size[d];
    const I coordinate = rest - outer * static_cast<I>(space.size[d]);
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) sums[k] += coordinate * static_cast<I>(strides[k][d]);
    rest = outer;
  }
  VAE_FUSED_UNROLL
  for (int k = 0; k < N; ++k) offsets[k] = sums[k] + rest * static_cast<I>(strides[k][0]);
}

// Whether a kernel has both. A dimension costs some 45 instructions of a step by 64 bits and 20 by
// 32; double has time for them.
template <typename S>
constexpr bool kHasBoth = sizeof(S) < 8;

// The offsets of the step at element e, by 32 bits where they do. A patch begins at 0 in the last
// dimension, which is not asked for.
template <typename S, Access kAccess, int N>
__device__ __forceinline__ void locate(const Space& space, const int64_t* const (&strides)[N],
                                       int64_t e, int64_t (&offsets)[N]) {
  if constexpr (kAccess == Access::kLinear) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) offsets[k] = e;
  } else {
    constexpr bool kPatched = kAccess == Access::kPatched;
    constexpr uint32_t kInLast = kPatched ? kChunk<S, kAccess> : 1;
    const int last = space.ndim - (kPatched ? 2 : 1);
    if (kHasBoth<S> && space.small) {
      locate_as(space, strides, last, static_cast<uint32_t>(e) / kInLast, offsets);
    } else {
      const auto rest = static_cast<int64_t>(static_cast<uint64_t>(e) / kInLast);
      locate_as(space, strides, last, rest, offsets);
    }
  }
}

// Elements outside of the tile are 0. Not `aligned`: an element at a time. Here and below what is
// loaded is an argument: as a result nvcc takes it apart, and a loop carries the halves of
// registers.
template <typename S, int V, bool kWhole>
__device__ __forceinline__ void load_vector(const S* data, const Span<kWhole>& span,
                                            Pack<S, V>& pack, bool aligned = true) {
  if (V == 1 || (aligned && span.whole(V))) {
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
__device__ __forceinline__ void load(const Space& space, const Operand& operand, int64_t offset,
                                     const Span<kWhole>& span, Pack<E, kStep<S, kAccess>>& pack) {
  constexpr int V = kVector<S, kAccess>, C = kChunk<S, kAccess>;
  const E* const data = address<E, kAccess>(operand.data, offset, span);
  if constexpr (kAccess == Access::kPatched) {
    const bool splats = kSplats && operand.stride[space.ndim - 2] == 0;
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
      for (int b = 0; b < V; ++b) pack.s[b * C + j] = vector.s[b];
    }
  } else if (kSplats && V > 1 && operand.stride[space.ndim - 1] == 0) {
    const E value = *data;
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) pack.s[j] = value;
  } else {
    load_vector(data, span, pack);
  }
}

// Chunk `b` of a step of sample s > 0, where samples are: never in patches.
template <typename S, Access kAccess, bool kWhole>
__device__ __forceinline__ void load_chunk(const Space& space, const Sampled& operand,
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
  S* const data = address<S, kAccess>(operand.data, offset, span);
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

// Whether 16-bit elements are taken from their pack by twos. Where a pack was put together from
// single elements, it is better taken apart so.
template <typename S, Access kAccess, bool kWhole>
constexpr bool kByTwos =
    sizeof(S) == 2 && (kAccess == Access::kLinear || (kAccess == Access::kStrided && kWhole));

// Chunk b of a pack.
template <Access kAccess, bool kWhole, int C, typename S, int N>
__device__ __forceinline__ void widen(const Pack<S, N>& in, int b, arithmetic_t<S> (&out)[C]) {
  if constexpr (kByTwos<S, kAccess, kWhole>) {
    math::Pair<S> pairs[N / 2];
    std::memcpy(pairs, &in, sizeof pairs);
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; j += 2) math::widen(pairs[(b * C + j) / 2], out[j], out[j + 1]);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) out[j] = math::widen(in.s[b * C + j]);
  }
}

template <Access kAccess, bool kWhole, int C, typename S, int N>
__device__ __forceinline__ void narrow(const arithmetic_t<S> (&in)[C], int b, Pack<S, N>& out) {
  if constexpr (kByTwos<S, kAccess, kWhole>) {
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

// From a chunk of a step to the next, in the stream of normals.
template <typename S, Access kAccess>
__device__ __forceinline__ int64_t chunk_stride(const Space& space) {
  return kAccess == Access::kPatched ? space.noise_stride[space.ndim - 2] : kChunk<S, kAccess>;
}

// The key that a call has used, for its backward: written by the launch's first thread.
__device__ __forceinline__ void write_key(const Key& key, uint64_t* out) {
  if (!out || blockIdx.x != 0 || threadIdx.x != 0) return;
  out[0] = key.seed;
  out[1] = key.offset;
}

// The stream of a key.
template <bool kKept>
class Stream {
 public:
  __device__ __forceinline__ explicit Stream(const Key& key) : key_(key) {}
  // Of a call, whose key it writes to `out`, if that is asked for.
  __device__ __forceinline__ explicit Stream(const RngKey& key, uint64_t* out = nullptr)
      : key_(resolve(key)) {
    write_key(key_, out);
  }

  // Normals `index` to `index + C`: a block, or one.
  template <typename S, int C>
  __device__ __forceinline__ void normals(uint64_t index, arithmetic_t<S> (&out)[C]) const {
    constexpr bool coarse = math::kCoarse<S>;
    if constexpr (C == 1) {
      out[0] = math::normal_at<arithmetic_t<S>, coarse>(key_.seed, key_.offset, index);
    } else {
      math::normals<coarse>(math::philox(math::Seed(key_.seed), key_.offset + index / C), out);
    }
  }

 private:
  Key key_;
};

// The same with the keys of Philox's rounds kept in registers. As sums the compiler makes them anew
// for each block of noise, 18 additions for 4 floats, so they come from where it cannot know what
// they are: ten threads make them, in shared memory, and they alone wait for the key.
template <>
class Stream<true> {
 public:
  // All threads of the block take part.
  __device__ __forceinline__ explicit Stream(const RngKey& key, uint64_t* out = nullptr) {
    __shared__ Kept kept;
    if (threadIdx.x < math::kRounds) {
      const Key resolved = resolve(key);
      const math::Seed seed(resolved.seed);
      kept.keys.k[threadIdx.x][0] = seed.first(threadIdx.x);
      kept.keys.k[threadIdx.x][1] = seed.second(threadIdx.x);
      if (threadIdx.x == 0) {
        kept.offset = resolved.offset;
        write_key(resolved, out);
      }
    }
    __syncthreads();
    kept_ = kept;
  }

  template <typename S, int C>
  __device__ __forceinline__ void normals(uint64_t index, arithmetic_t<S> (&out)[C]) const {
    static_assert(C > 1);
    math::normals<math::kCoarse<S>>(math::philox(kept_.keys, kept_.offset + index / C), out);
  }

  // Before a tile of whole steps: its blocks of C normals have the counter's high word in common,
  // so that a part of the first two rounds is the same for all of them. False if they have not.
  template <int C>
  __device__ __forceinline__ bool enter(const Tile& tile) {
    const uint64_t first = kept_.offset + static_cast<uint64_t>(tile.begin) / C;
    low_ = static_cast<uint32_t>(first);
    high_ = static_cast<uint32_t>(first >> 32);
    return low_ + (static_cast<uint32_t>(tile.n) / C - 1) >= low_;
  }

  // Chunk b of a step of the tile that was entered.
  template <typename S, int C>
  __device__ __forceinline__ void normals(const Span<true>& span, int b,
                                          arithmetic_t<S> (&out)[C]) const {
    math::normals<math::kCoarse<S>>(math::philox(kept_.keys, low_ + (span.slot / C + b), high_),
                                    out);
  }

 private:
  struct alignas(16) Kept {
    math::RoundKeys keys;
    uint64_t offset;
  };
  Kept kept_;
  uint32_t low_ = 0, high_ = 0;
};

}  // namespace vae_fused::cuda
