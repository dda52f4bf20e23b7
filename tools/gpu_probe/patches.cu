// The kernels of patches.h.
#include "patches.h"
#include "variants.cuh"

namespace vae_fused::probe {
namespace {

constexpr int kPixels = 4, kElements = 16;  // of a patch

// A patch lies in registers as in memory: pixel by pixel, four channels each.
template <typename S>
struct Patch {
  static constexpr int kPerPixel = sizeof(S);  // words
  static constexpr int kWords = kPixels * kPerPixel;
  uint32_t words[kWords];

  // Channels 2 pair and 2 pair + 1, over the pixels.
  __device__ __forceinline__ void get(int pair, float (&first)[kChunk],
                                      float (&second)[kChunk]) const {
    VAE_FUSED_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      if constexpr (sizeof(S) == 4) {
        first[p] = math::real(words[4 * p + 2 * pair]);
        second[p] = math::real(words[4 * p + 2 * pair + 1]);
      } else {
        math::widen(math::Pair<S>{words[2 * p + pair]}, first[p], second[p]);
      }
    }
  }
  __device__ __forceinline__ void set(int pair, const float (&first)[kChunk],
                                      const float (&second)[kChunk]) {
    VAE_FUSED_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      if constexpr (sizeof(S) == 4) {
        words[4 * p + 2 * pair] = math::bits(first[p]);
        words[4 * p + 2 * pair + 1] = math::bits(second[p]);
      } else {
        math::Pair<S> both;
        math::narrow(first[p], second[p], both);
        words[2 * p + pair] = both.u;
      }
    }
  }
};

// The first byte of a patch in memory, and its first block of noise.
struct Place {
  uint32_t byte, block;
};

template <typename S>
__device__ __forceinline__ Place place_of(const PatchArgs& p, uint32_t patch) {
  const uint32_t m = quotient(patch, p.by_groups), group = patch - m * p.groups;
  const uint32_t image = quotient(m, p.by_pixel_blocks), within = m - image * p.pixel_blocks;
  return {(m * kPixels * p.channels + 4 * group) * uint32_t{sizeof(S)},
          (image * p.channels + 4 * group) * p.pixel_blocks + within};
}

template <typename S, bool kFour>
__device__ __forceinline__ void load(const PatchArgs& p, const char* data, uint32_t byte,
                                     Patch<S>& patch) {
  if constexpr (kFour) {
    uint4 vectors[Patch<S>::kWords / 4];
    VAE_FUSED_UNROLL
    for (int i = 0; i < Patch<S>::kWords / 4; ++i) vectors[i] = load_global(data + byte + 16 * i);
    std::memcpy(patch.words, vectors, sizeof vectors);
  } else if constexpr (sizeof(S) == 4) {
    VAE_FUSED_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      const uint4 pixel = load_global(data + byte + i * p.channels * 4);
      std::memcpy(patch.words + 4 * i, &pixel, sizeof pixel);
    }
  } else {
    VAE_FUSED_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      const uint2 pixel = *reinterpret_cast<const uint2*>(data + byte + i * p.channels * 2);
      std::memcpy(patch.words + 2 * i, &pixel, sizeof pixel);
    }
  }
}

// A store of 16 bytes writes half a 32-byte sector. Neighbouring threads have consecutive patches
// and exchange halves, so that each store instruction writes whole sectors.
template <typename S>
__device__ __forceinline__ void store_of_pair(char* data, uint32_t byte, const Patch<S>& patch) {
  constexpr uint32_t kBytes = sizeof patch.words;
  const bool odd = threadIdx.x & 1;
  char* const first = data + byte - (odd ? kBytes : 0);  // of the even thread's patch
  VAE_FUSED_UNROLL
  for (int i = 0; i < Patch<S>::kWords / 8; ++i) {
    uint32_t mine[4], got[4];
    VAE_FUSED_UNROLL
    for (int j = 0; j < 4; ++j) {
      const uint32_t low = patch.words[8 * i + j], high = patch.words[8 * i + 4 + j];
      got[j] = __shfl_xor_sync(0xFFFFFFFFu, odd ? low : high, 1);
      mine[j] = odd ? high : low;
    }
    const uint4 own{mine[0], mine[1], mine[2], mine[3]}, other{got[0], got[1], got[2], got[3]};
    char* const sector = first + 32 * i + (odd ? 16 : 0);
    store_global(sector, odd ? other : own);
    store_global(sector + kBytes, odd ? own : other);
  }
}

template <typename S, bool kFour>
__device__ __forceinline__ void store(const PatchArgs& p, char* data, uint32_t byte,
                                      const Patch<S>& patch) {
  if constexpr (kFour) {
    store_of_pair(data, byte, patch);
  } else {
    VAE_FUSED_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      char* const to = data + byte + i * p.channels * uint32_t{sizeof(S)};
      if constexpr (sizeof(S) == 4) {
        uint4 pixel;
        std::memcpy(&pixel, patch.words + 4 * i, sizeof pixel);
        store_global(to, pixel);
      } else {
        *reinterpret_cast<uint2*>(to) = {patch.words[2 * i], patch.words[2 * i + 1]};
      }
    }
  }
}

// Block `k` of a patch's noise belongs to its channel k.
template <typename S>
__device__ __forceinline__ float sample_patch(const PatchArgs& p, const Options& f,
                                              const math::RoundKeys& keys, uint32_t low,
                                              const Patch<S> (&in)[2], Patch<S>& out) {
  float sum = 0;
  VAE_FUSED_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    float mu[2][kChunk], raw[2][kChunk], z[2][kChunk];
    in[0].get(pair, mu[0], mu[1]);
    in[1].get(pair, raw[0], raw[1]);
    VAE_FUSED_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int k = 2 * pair + c;
      sample_chunk<S>(f, keys, low + k * p.pixel_blocks, p.common.high, mu[c], raw[c], k == 0, z[c],
                      sum);
    }
    out.set(pair, z[0], z[1]);
  }
  return sum;
}

template <typename S>
__device__ __forceinline__ void gradients_of_patch(const PatchArgs& p, const Options& f,
                                                   const math::RoundKeys& keys, uint32_t low,
                                                   float grad_kl, const Patch<S> (&in)[3],
                                                   Patch<S> (&out)[2]) {
  VAE_FUSED_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    float mu[2][kChunk], raw[2][kChunk], gz[2][kChunk], graw[2][kChunk];
    in[0].get(pair, mu[0], mu[1]);
    in[1].get(pair, raw[0], raw[1]);
    in[2].get(pair, gz[0], gz[1]);
    VAE_FUSED_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int k = 2 * pair + c;
      gradients_of_chunk<S>(f, keys, low + k * p.pixel_blocks, p.common.high, mu[c], raw[c],
                            grad_kl, gz[c], graw[c]);
    }
    out[0].set(pair, gz[0], gz[1]);
    out[1].set(pair, graw[0], graw[1]);
  }
}

template <typename S, Direction kDirection, bool kFour, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    ab_patch_kernel(const __grid_constant__ PatchArgs p, const __grid_constant__ Options f) {
  constexpr bool kForward = kDirection == Direction::kForward;
  constexpr int kReads = kForward ? 2 : 3;
  const KeySource<Keys::kShared> keys(p.common);
  const uint32_t begin = blockIdx.x * p.common.tile_bytes, rest = p.patches - begin;
  const uint32_t end = begin + (rest < p.common.tile_bytes ? rest : p.common.tile_bytes);
  float grad_kl = 0;
  if constexpr (!kForward) grad_kl = p.common.kl_scale * *p.common.grad_kl;
  double sum = 0;
#pragma unroll 1
  for (uint32_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const Place place = place_of<S>(p, i);
    Patch<S> in[kReads];
    VAE_FUSED_UNROLL
    for (int k = 0; k < kReads; ++k) load<S, kFour>(p, p.common.of.in[k], place.byte, in[k]);
    const math::RoundKeys of_step = keys.get(p.common);
    const uint32_t low = p.common.low + place.block;
    if constexpr (kForward) {
      Patch<S> out;
      sum += static_cast<double>(sample_patch(p, f, of_step, low, in, out));
      store<S, kFour>(p, p.common.of.out[0], place.byte, out);
    } else {
      Patch<S> out[2];
      gradients_of_patch(p, f, of_step, low, grad_kl, in, out);
      VAE_FUSED_UNROLL
      for (int k = 0; k < 2; ++k) store<S, kFour>(p, p.common.of.out[k], place.byte, out[k]);
    }
  }
  if constexpr (kForward) {
    sum = cuda::block_sum(sum);
    if (threadIdx.x == 0) p.common.partials[blockIdx.x] = sum;
    __syncthreads();
    if (is_last(p.common)) combine(p.common);
  }
}

template <typename S, Direction kDirection, bool kFour, int kBlocks>
PatchVariant variant_of(DType dtype) {
  const auto launch = [](const PatchArgs& args, int64_t blocks, cudaStream_t stream) -> int {
    Options options = math::default_options<float>(math::LatentOptions<double>());
    if (kDirection == Direction::kBackward) options = math::without_clip(options);
    return cuda::launch(ab_patch_kernel<S, kDirection, kFour, bound(kBlocks)>, blocks, stream, args,
                        options);
  };
  const auto cost = [] {
    return cost_of(ab_patch_kernel<S, kDirection, kFour, bound(kBlocks)>, kThreads);
  };
  return {kDirection, dtype, kFour, kBlocks, launch, cost};
}

template <typename S>
void add_variants(DType dtype, std::vector<PatchVariant>& all) {
  constexpr Direction kForward = Direction::kForward, kBackward = Direction::kBackward;
  all.insert(all.end(), {
                            variant_of<S, kForward, true, 2>(dtype),
                            variant_of<S, kForward, true, 3>(dtype),
                            variant_of<S, kForward, true, 4>(dtype),
                            variant_of<S, kForward, false, 2>(dtype),
                            variant_of<S, kForward, false, 3>(dtype),
                            variant_of<S, kForward, false, 4>(dtype),
                            variant_of<S, kBackward, true, 2>(dtype),
                            variant_of<S, kBackward, true, 3>(dtype),
                            variant_of<S, kBackward, false, 2>(dtype),
                            variant_of<S, kBackward, false, 3>(dtype),
                        });
}

}  // namespace

std::string PatchVariant::name() const {
  return std::string("patches of 4x4, ") + std::to_string(blocks) + " blocks" +
         (four_channels ? ", exchanged halves" : "");
}

const std::vector<PatchVariant>& patch_variants() {
  static const std::vector<PatchVariant> all = [] {
    std::vector<PatchVariant> made;
    add_variants<math::BFloat16>(DType::kBFloat16, made);
    add_variants<float>(DType::kFloat32, made);
    return made;
  }();
  return all;
}

int launch(const PatchVariant& variant, const VariantCall& call, int64_t channels, int64_t pixels,
           const Sizes& sizes, cudaStream_t stream) {
  if (channels % 4 != 0 || pixels % kPixels != 0 || call.elements % (kThreads * kElements) != 0 ||
      call.elements >= int64_t{1} << 29 || (variant.four_channels && channels != 4)) {
    return cudaErrorInvalidValue;
  }
  const int64_t merged = (call.elements / kTile - 1) / sizes.enough_blocks + 1;
  const int64_t steps = merged < 2 ? 1 : merged / 2;  // of 4096 elements, in a tile
  PatchArgs args;
  args.patches = static_cast<uint32_t>(call.elements / kElements);
  args.channels = static_cast<uint32_t>(channels);
  args.groups = args.channels / 4;
  args.pixel_blocks = static_cast<uint32_t>(pixels / kPixels);
  args.by_groups = divisor_of(args.groups);
  args.by_pixel_blocks = divisor_of(args.pixel_blocks);
  VariantArgs& common = args.common;
  common.of = call.of;
  common.tile_bytes = static_cast<uint32_t>(kThreads * steps);
  common.tiles = (args.patches - 1) / common.tile_bytes + 1;
  common.low = static_cast<uint32_t>(call.offset);
  common.high = static_cast<uint32_t>(call.offset >> 32);
  common.seed = call.seed + (call.wrong_key ? 1 : 0);
  common.kl_scale = call.kl_scale;
  common.grad_kl = call.grad_kl;
  common.kl = call.kl;
  common.partials = call.partials;
  common.counter = call.counter;
  common.ticket = call.ticket;
  return variant.launch(args, common.tiles, stream);
}

}  // namespace vae_fused::probe
