// The elements of a step in registers, in their storage format, and the conversion to and from
// chunks of the arithmetic type.
#pragma once

#include <cstring>

#include "cuda/select.cuh"

namespace vae_fused::cuda {

template <typename S, int N>
struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Pack {
  S s[N];
};

// Returns the index, within a pack, of element j of chunk b. A pack holds a step in memory order.
template <typename S, Access kAccess>
__device__ __forceinline__ constexpr int place_of(int b, int j) {
  return kAccess == Access::kChannelsLast ? j * kVector<S, kAccess> + b
                                          : b * kChunk<S, kAccess> + j;
}

// Whether 16-bit elements are converted two at a time. Converting one at a time is better for a
// pack that may have been assembled from single elements.
template <typename S, Access kAccess, bool kWhole>
constexpr bool kConvertsPairs =
    sizeof(S) == 2 && (kAccess == Access::kContiguous || kAccess == Access::kChannelsLast ||
                       (kAccess == Access::kStrided && kWhole));

// Returns elements i and i + 1 of a pack, where i is even.
template <typename S, int N>
__device__ __forceinline__ math::Pair<S> pair_of(const Pack<S, N>& pack, int i) {
  math::Pair<S> pairs[N / 2];
  std::memcpy(pairs, &pack, sizeof pairs);
  return pairs[i / 2];
}

template <typename S, int N>
__device__ __forceinline__ void set_pair(Pack<S, N>& pack, int i, arithmetic_t<S> first,
                                         arithmetic_t<S> second) {
  math::Pair<S> pairs[N / 2];
  std::memcpy(pairs, &pack, sizeof pairs);
  math::narrow(first, second, pairs[i / 2]);
  std::memcpy(&pack, pairs, sizeof pairs);
}

// Converts chunk b of a pack to the arithmetic type.
template <Access kAccess, bool kWhole, int C, typename S, int N>
__device__ __forceinline__ void widen(const Pack<S, N>& in, int b, arithmetic_t<S> (&out)[C]) {
  if constexpr (!kConvertsPairs<S, kAccess, kWhole>) {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) out[j] = math::widen(in.s[place_of<S, kAccess>(b, j)]);
  } else if constexpr (kAccess == Access::kChannelsLast) {  // a word holds elements of two chunks
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      arithmetic_t<S> both[2];
      math::widen(pair_of(in, place_of<S, kAccess>(b & ~1, j)), both[0], both[1]);
      out[j] = both[b & 1];
    }
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; j += 2) math::widen(pair_of(in, b * C + j), out[j], out[j + 1]);
  }
}

template <Access kAccess, bool kWhole, int C, typename S, int N>
__device__ __forceinline__ void narrow(const arithmetic_t<S> (&in)[C], int b, Pack<S, N>& out) {
  if constexpr (kConvertsPairs<S, kAccess, kWhole>) {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; j += 2) set_pair(out, b * C + j, in[j], in[j + 1]);
  } else {
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) math::narrow(in[j], out.s[b * C + j]);
  }
}

// Collects the results of a step chunk by chunk. With kChannelsLast, a word of 16-bit elements
// holds elements of two chunks, so results are narrowed when the second of these chunks is set.
template <typename S, Access kAccess>
class Results {
  using T = arithmetic_t<S>;
  static constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;

 public:
  template <bool kWhole>
  __device__ __forceinline__ void set(int b, const T (&chunk)[C]) {
    if constexpr (kAccess != Access::kChannelsLast) {
      narrow<kAccess, kWhole, C>(chunk, b, pack);
    } else if constexpr (sizeof(S) != 2) {
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) pack.s[place_of<S, kAccess>(b, j)] = chunk[j];
    } else {
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        if (b & 1) set_pair(pack, place_of<S, kAccess>(b - 1, j), before_[j], chunk[j]);
        before_[j] = chunk[j];
      }
    }
  }

  Pack<S, N> pack{};

 private:
  T before_[C];
};

}  // namespace vae_fused::cuda
