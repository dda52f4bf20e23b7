// The noise of a step: the Philox round keys, and the block of noise for each chunk.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/tile.cuh"
#include "iteration/key.h"

namespace vae_fused::cuda {

// Stores the key of the call for its backward pass. Only the first thread of the launch writes it.
__device__ __forceinline__ void write_key(const Key& key, uint64_t* out) {
  if (!out || blockIdx.x != 0 || threadIdx.x != 0) return;
  out[0] = key.seed;
  out[1] = key.offset;
}

// A position in the noise stream: the counter of the call's first block of noise, and the counter
// of the tile's first block of noise, as two words.
struct Counter {
  uint64_t offset;
  uint32_t low = 0, high = 0;

  // Sets the tile's counter to block `first`. Returns whether the counters of the n blocks from
  // `first` on have the same high word. In that case, part of the first two Philox rounds is the
  // same for all n blocks, and the compiler hoists it out of the loop.
  __device__ __forceinline__ bool try_share_high_word(uint64_t first, uint32_t n) {
    const uint64_t counter = offset + first;
    low = static_cast<uint32_t>(counter);
    high = static_cast<uint32_t>(counter >> 32);
    return low + (n - 1) >= low;
  }
};

// Round keys that stay in shared memory. Philox reads each key right before it is used, so that no
// key occupies a register for long.
struct KeysInShared {
  SharedAddress<math::RoundKeys> keys;

  __host__ __device__ __forceinline__ uint32_t first(uint32_t r) const { return keys.word(2 * r); }
  __host__ __device__ __forceinline__ uint32_t second(uint32_t r) const {
    return keys.word(2 * r + 1);
  }
};

// Draws normals. Keys is math::RoundKeys, KeysInShared, or math::Seed, which computes the round
// keys.
template <class Keys>
struct Noise {
  Keys keys;
  Counter counter;

  // Computes the normals [index, index + C) of the stream. If C is 1, this is a single normal.
  // Otherwise it is a whole block of noise.
  template <typename S, int C>
  __device__ __forceinline__ void normals(uint64_t index, arithmetic_t<S> (&out)[C]) const {
    if constexpr (C == 1) {
      out[0] = math::normal_at<arithmetic_t<S>, math::kCoarse<S>>(keys, counter.offset, index);
    } else {
      math::normals<math::kCoarse<S>>(math::philox(keys, counter.offset + index / C), out);
    }
  }

  // Computes the normals of a block of noise if all counters share the high word. `block` is
  // relative to the tile's first block of noise.
  template <typename S, int C>
  __device__ __forceinline__ void normals_of_block(uint32_t block,
                                                   arithmetic_t<S> (&out)[C]) const {
    math::normals<math::kCoarse<S>>(math::philox(keys, counter.low + block, counter.high), out);
  }
};

// The noise stream of a call's key, as a thread block stores it. `for_step` returns the Noise of a
// step. With kReadsKeysOnce, a step begins by reading all keys from shared memory. Loops with more
// branches read the keys one by one, because reading all keys at once would cause spills on some
// architecture.
template <KeySource kSource>
class NoiseStream : public Counter {
 public:
  // All threads of the block must call this constructor.
  __device__ __forceinline__ explicit NoiseStream(const RngKey& key, uint64_t* out = nullptr)
      : NoiseStream(share(key, out)) {}

  template <bool kReadsKeysOnce>
  __device__ __forceinline__ auto for_step() const {
    if constexpr (kSource == KeySource::kRegisters) {
      return Noise<math::RoundKeys>{keys_, *this};
    } else if constexpr (kReadsKeysOnce) {
      return Noise<math::RoundKeys>{keys_.read(), *this};
    } else {
      return Noise<KeysInShared>{{keys_}, *this};
    }
  }

 private:
  struct alignas(16) Shared {
    math::RoundKeys keys;
    uint64_t offset;
  };

  // Ten threads compute the round keys, and only these threads load the key of the call. Round keys
  // that end up in registers also pass through shared memory. Otherwise the compiler would see that
  // they are sums and recompute them for each block of noise.
  static __device__ __forceinline__ const Shared& share(const RngKey& key, uint64_t* out) {
    __shared__ Shared shared;
    if (threadIdx.x < math::kRounds) {
      const Key resolved = resolve(key);
      const math::Seed seed(resolved.seed);
      shared.keys.k[threadIdx.x][0] = seed.first(threadIdx.x);
      shared.keys.k[threadIdx.x][1] = seed.second(threadIdx.x);
      if (threadIdx.x == 0) {
        shared.offset = resolved.offset;
        write_key(resolved, out);
      }
    }
    __syncthreads();
    return shared;
  }

  __device__ __forceinline__ explicit NoiseStream(const Shared& shared) : Counter{shared.offset} {
    if constexpr (kSource == KeySource::kShared) {
      keys_ = SharedAddress<math::RoundKeys>(&shared.keys);
    }
    if constexpr (kSource == KeySource::kRegisters) keys_ = shared.keys;
  }

  std::conditional_t<kSource == KeySource::kShared, SharedAddress<math::RoundKeys>, math::RoundKeys>
      keys_;
};

template <>
class NoiseStream<KeySource::kSeed> : public Counter {
 public:
  __device__ __forceinline__ explicit NoiseStream(const RngKey& key, uint64_t* out = nullptr)
      : Counter{resolve(key).offset}, seed_(resolve(key).seed) {
    write_key(resolve(key), out);
  }

  template <bool kReadsKeysOnce>
  __device__ __forceinline__ Noise<math::Seed> for_step() const {
    return {seed_, *this};
  }

 private:
  math::Seed seed_;
};

// Prepares the noise stream for a tile whose steps are all whole. The blocks of noise of a tile are
// consecutive, except with channels_last, where they may be any of the call's blocks.
template <typename S, Access kAccess>
__device__ __forceinline__ bool try_share_high_word(const Space& space, const Tile& tile,
                                                    Counter& counter) {
  constexpr int C = kChunk<S, kAccess>;
  if constexpr (kAccess == Access::kChannelsLast) {
    return counter.try_share_high_word(0, static_cast<uint32_t>(space.rows * space.cols) / C);
  }
  return counter.try_share_high_word(static_cast<uint64_t>(tile.begin) / C,
                                     static_cast<uint32_t>(tile.n) / C);
}

// Draws the normals of chunk b of a step. `at` is the index of the step's first normal.
template <typename S, Access kAccess, bool kFast, class Keys, bool kWhole, int C>
__device__ __forceinline__ void draw(const Space& space, const Noise<Keys>& noise,
                                     const Span<kWhole>& span, int64_t at, int b,
                                     arithmetic_t<S> (&out)[C]) {
  constexpr bool kChannelsLast = kAccess == Access::kChannelsLast;
  if constexpr (kFast && kChannelsLast) {
    const uint32_t stride = low_word(space.noise_stride[kFastDims<kAccess> - 2]);
    noise.template normals_of_block<S>((static_cast<uint32_t>(at) + b * stride) / C, out);
  } else if constexpr (kFast) {
    noise.template normals_of_block<S>(span.slot / C + b, out);
  } else {
    const int64_t stride = kChannelsLast ? space.noise_stride[space.ndim - 2] : C;
    noise.template normals<S>(at + b * stride, out);
  }
}

}  // namespace vae_fused::cuda
