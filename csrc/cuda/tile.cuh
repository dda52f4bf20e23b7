// From a tile to a thread's steps: N neighbouring elements in registers, and their noise.
//
// Memory is accessed in vectors of 16 bytes (4 float, 2 double, 8 of 16 bits), or in single
// elements. The host decides for all tensors of a call at once (see Access), so that no thread ever
// looks at a layout or an alignment.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/launch.cuh"
#include "math/gaussian.h"
#include "math/normal.h"
#include "math/storage.h"
#include "params.h"

namespace vae_fused::cuda {

using math::arithmetic_t;

// How a kernel reads and writes.
enum class Access {
  kLinear,   // the usual call: every tensor there, contiguous and aligned; noise from the key
  kStrided,  // vectors, too, wherever innermost runs consist of whole ones; tensors may be absent
  kPatched,  // channels_last: memory runs across the blocks of noise, see `patch`; the same
  kScalar,   // anything, an element at a time
};

// Kernels are instantiated for the Plain family with vectors, and for any Family with kStrided,
// kPatched and kScalar: that one also takes what the plain ones cannot, a value broadcast along a
// vector or no vectors at all.
template <class F>
constexpr bool kGeneral = false;
template <typename T>
constexpr bool kGeneral<math::Family<T>> = true;

template <typename S, Access kAccess>
constexpr int kVector = kAccess == Access::kScalar    ? 1
                        : kAccess == Access::kPatched ? 2
                                                      : 16 / sizeof(S);

// Arithmetic goes through a step in chunks of a block of noise.
template <typename S, Access kAccess>
constexpr int kChunk = kAccess == Access::kScalar ? 1 : math::kNormalsPerBlock<arithmetic_t<S>>;

template <typename S, Access kAccess>
constexpr int kStep = kVector<S, kAccess> * (kAccess == Access::kPatched ? kChunk<S, kAccess> : 1);

// Blocks on an SM at least, which bounds the registers: double 128, float 64, 16-bit 80. Without a
// bound the compiler interleaves the chunks of a 16-bit vector, takes 100, and halves the loads in
// flight; a block more, and some architecture spills. Patches have more addresses to keep, and the
// general family more of everything: 128 registers, which patches exceed by a dozen.
template <typename S, Access kAccess, class F>
constexpr int kBlocks = kGeneral<F>      ? (sizeof(S) == 8 || kAccess == Access::kPatched ? 1 : 2)
                        : sizeof(S) == 8 ? (kAccess == Access::kPatched ? 1 : 2)
                        : sizeof(S) == 4 ? (kAccess == Access::kPatched ? 3 : 4)
                                         : 3;

template <typename S, int N>
struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Pack {
  S s[N];
};

// -------------------------------------------------------------------------------------------------
// host
// -------------------------------------------------------------------------------------------------

// A tensor of a call, as far as its layout matters.
struct Layout {
  Operand* operand;
  int bytes;         // of an element
  bool written;      // else a value may be broadcast along a vector
  int64_t step = 0;  // from a sample to the next

  bool present() const { return operand->data; }
};

// Whether the innermost runs of a tensor consist of whole vectors.
inline bool whole_runs(const Space& space, const int64_t* stride, int v) {
  const int inner = space.ndim - 1;
  if (stride[inner] != 1 || space.size[inner] % v != 0) return false;
  for (int d = 0; d < inner; ++d) {
    if (stride[d] % v != 0) return false;
  }
  return true;
}

inline bool aligned(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % std::min<int64_t>(bytes, 16) == 0;
}

// channels_last: what is contiguous in memory (the channels, i) is not what is contiguous in the
// noise (the pixels, m). Then the flat order becomes (..., m / c, i, c) for noise in blocks of c: a
// step is a patch of v = 2 channels by c pixels, which takes c small vectors from memory and two
// whole blocks of noise. Larger vectors would leave most threads of a tile without a step, and
// exclude 16-bit latents of 4 channels. False, and nothing is changed, if the tensors are not like
// that, or if the order of kept dimensions, which is that of the KL's rows, would change.
inline bool patch(Space& space, const std::vector<Layout>& layouts, const void* rows, int v,
                  int c) {
  const auto splats = [](const Layout& l, int d) {
    return !l.written && l.operand->stride[d] == 0;
  };
  const auto is_inner = [&](int d) {
    return space.size[d] % v == 0 && std::all_of(layouts.begin(), layouts.end(), [&](Layout l) {
             return l.operand->stride[d] == 1 || splats(l, d);
           });
  };
  int i = -1, m = -1;
  const bool no_rows = !rows && space.cols == 1;
  int64_t covered = 1;
  for (int d = space.ndim - 1; d >= 0; --d) {
    covered *= space.size[d];
    if (covered > space.cols && !no_rows) break;
    if (is_inner(d)) i = d;
    if (space.noise_stride[d] == 1 && space.size[d] % c == 0) m = d;
  }
  if (i < 0 || m < 0 || i == m || space.ndim == kMaxDims) return false;
  for (int d = 0; d < space.ndim; ++d) {
    if (d != m && space.noise_stride[d] % c != 0) return false;
    for (const Layout& l : layouts) {
      if (d != i && !splats(l, i) && l.operand->stride[d] % v != 0) return false;
    }
  }
  const auto reorder = [&](int64_t (&values)[kMaxDims], int64_t outer, int64_t last) {
    const int64_t inner = values[i];
    int at = 0;
    for (int d = 0; d < space.ndim; ++d) {
      if (d != i && d != m) values[at++] = values[d];
    }
    values[at++] = outer;
    values[at++] = inner;
    values[at] = last;
  };
  for (const Layout& l : layouts) {
    reorder(l.operand->stride, l.operand->stride[m] * c, l.operand->stride[m]);
  }
  reorder(space.noise_stride, c, 1);
  reorder(space.size, space.size[m] / c, c);
  ++space.ndim;
  for (int d = 0; d < space.ndim; ++d) space.by_size[d] = divisor(space.size[d]);
  return true;
}

// Double has vectors for the plain call alone. Elements of 8 bytes are coalesced as well as vectors
// are, and the general family's kernels for vectors of double were a fifth of the binary: with them
// sm_120 had 4.9 MB.
template <typename S>
constexpr bool kVectorsOfFamily = sizeof(S) < 8;

// How to go through a call, and whether the plain kernels can.
struct Way {
  Access access;
  bool plain;
};

// `layouts` are those of all tensors but the Gaussians' own. `rows` is what has a value for each
// row: read and written in vectors where a row is an element. `usual`: the call has every tensor
// that it can have, but noise from the key. May rewrite the space and the operands' strides: see
// `patch`.
template <typename S>
Way way_of(Space& space, Gaussians& of, std::vector<Layout> layouts, const void* rows, bool usual,
           bool needs_noise) {
  constexpr int v = kVector<S, Access::kStrided>, c = kChunk<S, Access::kStrided>;
  layouts.insert(layouts.end(), {{&of.mu, sizeof(S), false},
                                 {&of.raw, sizeof(S), false},
                                 {&of.prior_mean, sizeof(S), false},
                                 {&of.prior_raw, sizeof(S), false},
                                 {&of.mask, 1, false}});
  layouts.erase(
      std::remove_if(layouts.begin(), layouts.end(), [](const Layout& l) { return !l.present(); }),
      layouts.end());
  const auto all = [&](auto predicate) {
    return std::all_of(layouts.begin(), layouts.end(), predicate);
  };
  const Way scalar{Access::kScalar, false};
  const int inner = space.ndim - 1;
  const auto expands = [&](const Layout& l) {
    return !l.written && std::count(l.operand->stride, l.operand->stride + space.ndim, 0) > 0;
  };
  if (!kVectorsOfFamily<S> && (!of.plain || std::any_of(layouts.begin(), layouts.end(), expands))) {
    return scalar;
  }
  const auto splats = [&](const Layout& l) { return !l.written && l.operand->stride[inner] == 0; };
  if (!all([&](const Layout& l) {
        return splats(l) || aligned(l.operand->data, int64_t{l.bytes} * v);
      })) {
    return scalar;
  }
  if (space.cols == 1 && !aligned(rows, 16)) return scalar;
  if (of.samples > 1 &&
      (space.rows * space.cols % v != 0 || !all([](const Layout& l) { return l.step % v == 0; }))) {
    return scalar;
  }
  // Where all is linear there is one dimension, which need not consist of whole vectors.
  const auto vectors = [&](const int64_t* stride, bool linear) {
    return space.ndim == 1 ? linear : whole_runs(space, stride, v);
  };
  const bool whole = space.ndim == 1 || space.size[inner] % v == 0;
  if (whole && all([&](const Layout& l) {
        return splats(l) || vectors(l.operand->stride, l.operand->linear);
      }) &&
      (!needs_noise || vectors(space.noise_stride, space.noise_linear))) {
    const bool plain = of.plain && !std::any_of(layouts.begin(), layouts.end(), splats);
    return {plain && usual && space.ndim == 1 ? Access::kLinear : Access::kStrided, plain};
  }
  constexpr int patch_v = kVector<S, Access::kPatched>, patch_c = kChunk<S, Access::kPatched>;
  static_assert(patch_c == c);
  if (of.samples > 1 || !patch(space, layouts, rows, patch_v, patch_c)) return scalar;
  const bool plain =
      of.plain && all([&](const Layout& l) { return l.operand->stride[space.ndim - 2] == 1; });
  return {Access::kPatched, plain};
}

// -------------------------------------------------------------------------------------------------
// device
// -------------------------------------------------------------------------------------------------

// The step of elements [e, e + N), e a multiple of N. Slots count from the step in which the tile
// begins: the step's is `slot`, the tile has [begin, end). Patches never leave their tile.
struct Span {
  int64_t e;
  int slot, begin, end;

  __device__ __forceinline__ bool whole(int v) const { return slot >= begin && slot + v <= end; }
  __device__ __forceinline__ bool has(int j) const { return slot + j >= begin && slot + j < end; }
  __device__ __forceinline__ Span operator+(int j) const { return {e + j, slot + j, begin, end}; }
};

// The first of the calling thread's steps in a tile; `kThreads * N` further on is the next.
template <int N>
__device__ __forceinline__ Span first_span(const Tile& tile) {
  const int begin = static_cast<int>(tile.begin & (N - 1)), slot = threadIdx.x * N;
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
template <typename S, int V>
__device__ __forceinline__ Pack<S, V> load_vector(const S* data, const Span& span,
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

template <typename S, int V>
__device__ __forceinline__ void store_vector(S* data, const Span& span, const Pack<S, V>& pack,
                                             bool aligned = true) {
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
template <typename S, Access kAccess, bool kSplats = false, typename E = S>
__device__ __forceinline__ Pack<E, kStep<S, kAccess>> load(const Space& space,
                                                           const Operand& operand, int64_t offset,
                                                           const Span& span) {
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
template <typename S, Access kAccess>
__device__ __forceinline__ Pack<S, kChunk<S, kAccess>> load_chunk(const Space& space,
                                                                  const Sampled& operand,
                                                                  int64_t offset, int64_t sample,
                                                                  int b, const Span& span) {
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

template <typename S, Access kAccess>
__device__ __forceinline__ void store_chunk(const Sampled& operand, int64_t offset, int64_t sample,
                                            int b, const Span& span,
                                            const Pack<S, kChunk<S, kAccess>>& pack) {
  constexpr int C = kChunk<S, kAccess>;
  S* const data = static_cast<S*>(operand.data) + offset + sample * operand.step;
  store_vector<S, C>(data + b * C, span + b * C, pack);
}

template <typename S, Access kAccess>
__device__ __forceinline__ void store(const Space& space, const Operand& operand, int64_t offset,
                                      const Span& span, const Pack<S, kStep<S, kAccess>>& pack) {
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

template <int C, typename S, int N>
__device__ __forceinline__ void widen(const Pack<S, N>& in, int b, arithmetic_t<S> (&out)[C]) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < C; ++j) out[j] = math::widen(in.s[b * C + j]);
}

template <int C, typename S, int N>
__device__ __forceinline__ void narrow(const arithmetic_t<S> (&in)[C], int b, Pack<S, N>& out) {
  VAE_FUSED_UNROLL
  for (int j = 0; j < C; ++j) math::narrow(in[j], out.s[b * C + j]);
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

// Normals `index` to `index + C` of the stream: a block of it, or one.
template <typename S, int C>
__device__ __forceinline__ void normals(const Key& key, uint64_t index, arithmetic_t<S> (&out)[C]) {
  constexpr bool coarse = math::kCoarse<S>;
  if constexpr (C == 1) {
    out[0] = math::normal_at<arithmetic_t<S>, coarse>(key.seed, key.offset, index);
  } else {
    math::normals<coarse>(math::philox(key.seed, key.offset + index / C), out);
  }
}

}  // namespace vae_fused::cuda
