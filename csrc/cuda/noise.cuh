// A step's noise: the stream of a call's key, and where in it a chunk's block lies.
#pragma once

#include "cuda/tile.cuh"

namespace vae_fused::cuda {

// The key that a call has used, for its backward: written by the launch's first thread.
__device__ __forceinline__ void write_key(const Key& key, uint64_t* out) {
  if (!out || blockIdx.x != 0 || threadIdx.x != 0) return;
  out[0] = key.seed;
  out[1] = key.offset;
}

// The stream of a key; Keys are those of Philox's rounds.
template <class Keys>
class StreamBy {
 public:
  // Normals `index` to `index + C`: a block, or one.
  template <typename S, int C>
  __device__ __forceinline__ void normals(uint64_t index, arithmetic_t<S> (&out)[C]) const {
    if constexpr (C == 1) {
      out[0] = math::normal_at<arithmetic_t<S>, math::kCoarse<S>>(keys_, offset_, index);
    } else {
      math::normals<math::kCoarse<S>>(math::philox(keys_, offset_ + index / C), out);
    }
  }

  // Before a usual tile, whose blocks of noise are `first` and some of the n that follow. Their
  // counters have the high word in common, so that a part of the first two rounds is the same for
  // all of them. False if they have not.
  __device__ __forceinline__ bool enter(uint64_t first, uint32_t n) {
    const uint64_t counter = offset_ + first;
    low_ = static_cast<uint32_t>(counter);
    high_ = static_cast<uint32_t>(counter >> 32);
    return low_ + (n - 1) >= low_;
  }

  // Block `block` of those that were entered.
  template <typename S, int C>
  __device__ __forceinline__ void normals_of_block(uint32_t block,
                                                   arithmetic_t<S> (&out)[C]) const {
    math::normals<math::kCoarse<S>>(math::philox(keys_, low_ + block, high_), out);
  }

 protected:
  __device__ __forceinline__ StreamBy(const Keys& keys, uint64_t offset)
      : keys_(keys), offset_(offset) {}

  Keys keys_;
  uint64_t offset_;

 private:
  uint32_t low_ = 0, high_ = 0;
};

template <bool kKept>
class Stream : public StreamBy<math::Seed> {
 public:
  __device__ __forceinline__ explicit Stream(const Key& key)
      : StreamBy(math::Seed(key.seed), key.offset) {}
  // Of a call, whose key it writes to `out`, if that is asked for.
  __device__ __forceinline__ explicit Stream(const RngKey& key, uint64_t* out = nullptr)
      : Stream(resolve(key)) {
    write_key(resolve(key), out);
  }
};

// The same with the keys of Philox's rounds kept in registers. As sums the compiler makes them anew
// for each block of noise, 18 additions for 4 floats, so they come from where it cannot know what
// they are: ten threads make them, in shared memory, and they alone wait for the key.
template <>
class Stream<true> : public StreamBy<math::RoundKeys> {
 public:
  // All threads of the block take part.
  __device__ __forceinline__ explicit Stream(const RngKey& key, uint64_t* out = nullptr)
      : Stream(kept_of(key, out)) {}

 private:
  struct alignas(16) Kept {
    math::RoundKeys keys;
    uint64_t offset;
  };

  __device__ __forceinline__ explicit Stream(const Kept& kept) : StreamBy(kept.keys, kept.offset) {}

  static __device__ __forceinline__ Kept kept_of(const RngKey& key, uint64_t* out) {
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
    return kept;
  }
};

// Before a usual tile. Its blocks of noise are one after the other, but for those of patches, which
// may be any of the call's.
template <typename S, Access kAccess, class Noise>
__device__ __forceinline__ bool enter(const Space& space, const Tile& tile, Noise& stream) {
  constexpr int C = kChunk<S, kAccess>;
  if constexpr (kAccess == Access::kPatched) {
    return stream.enter(0, static_cast<uint32_t>(space.rows * space.cols) / C);
  }
  return stream.enter(static_cast<uint64_t>(tile.begin) / C, static_cast<uint32_t>(tile.n) / C);
}

// The normals of chunk b of a step, the first of which has the index `at`.
template <typename S, Access kAccess, bool kUsual, class Noise, bool kWhole, int C>
__device__ __forceinline__ void draw(const Space& space, const Noise& stream,
                                     const Span<kWhole>& span, int64_t at, int b,
                                     arithmetic_t<S> (&out)[C]) {
  constexpr bool kPatched = kAccess == Access::kPatched;
  if constexpr (kUsual && kPatched) {
    const uint32_t stride = low_word(space.noise_stride[kUsualDims<kAccess> - 2]);
    stream.template normals_of_block<S>((static_cast<uint32_t>(at) + b * stride) / C, out);
  } else if constexpr (kUsual) {
    stream.template normals_of_block<S>(span.slot / C + b, out);
  } else {
    const int64_t stride = kPatched ? space.noise_stride[space.ndim - 2] : C;
    stream.template normals<S>(at + b * stride, out);
  }
}

}  // namespace vae_fused::cuda
