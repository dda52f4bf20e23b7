// One family of kernels for contiguous tensors. The variants differ in the template parameters: the
// place of the round keys, the way of loading, and the blocks per SM.
#pragma once

#include "cuda/reduce.cuh"
#include "elements.cuh"
#include "ptx.cuh"
#include "variants.h"

namespace vae_fused::probe {

constexpr uint32_t kStepBytes = kThreads * 16;  // of one tensor, that a block reads in a step

// ------------------------------------------------------------------------------------------------
// Round keys
// ------------------------------------------------------------------------------------------------

// Ten threads of the block compute the keys in shared memory. If the compiler could derive the keys
// from the seed, it would recompute them for each block of noise. Contains a barrier.
__device__ __forceinline__ const math::RoundKeys* shared_keys(uint64_t seed) {
  struct alignas(16) Aligned : math::RoundKeys {};
  __shared__ Aligned keys;
  if (threadIdx.x < math::kRounds) {
    const math::Seed of(seed);
    keys.k[threadIdx.x][0] = of.first(threadIdx.x);
    keys.k[threadIdx.x][1] = of.second(threadIdx.x);
  }
  __syncthreads();
  return &keys;
}

__device__ __forceinline__ math::RoundKeys read_keys(const math::RoundKeys* shared) {
  math::RoundKeys keys;
  uint4 words[sizeof(keys) / sizeof(uint4)];
  VAE_FUSED_UNROLL
  for (int i = 0; i < static_cast<int>(sizeof(keys) / sizeof(uint4)); ++i) {
    words[i] = load_shared(reinterpret_cast<const uint4*>(shared) + i);
  }
  std::memcpy(&keys, words, sizeof keys);
  return keys;
}

// `get` returns the round keys for a step.
template <Keys kKeys>
class KeySource;

template <>
class KeySource<Keys::kRegisters> {
 public:
  __device__ __forceinline__ explicit KeySource(const VariantArgs& p)
      : keys_(read_keys(shared_keys(p.seed))) {}
  __device__ __forceinline__ const math::RoundKeys& get(const VariantArgs&) const { return keys_; }

 private:
  math::RoundKeys keys_;
};

template <>
class KeySource<Keys::kShared> {
 public:
  __device__ __forceinline__ explicit KeySource(const VariantArgs& p)
      : shared_(shared_keys(p.seed)) {}
  __device__ __forceinline__ math::RoundKeys get(const VariantArgs&) const {
    return read_keys(shared_);
  }

 private:
  const math::RoundKeys* shared_;
};

// The keys are operands in constant memory, so the host must have the key.
template <>
class KeySource<Keys::kParameters> {
 public:
  __device__ __forceinline__ explicit KeySource(const VariantArgs&) {}
  __device__ __forceinline__ const math::RoundKeys& get(const VariantArgs& p) const {
    return p.keys;
  }
};

// ------------------------------------------------------------------------------------------------
// Loads
// ------------------------------------------------------------------------------------------------

// The steps of a thread through all tiles of its block. Offsets are in bytes.
class Walk {
 public:
  __device__ __forceinline__ explicit Walk(const VariantArgs& p)
      : at(blockIdx.x * p.tile_bytes + threadIdx.x * 16),
        tile_end_((blockIdx.x + 1) * p.tile_bytes) {}

  __device__ __forceinline__ void advance(const VariantArgs& p) {
    at += kStepBytes;
    if (at < tile_end_) return;
    at += (gridDim.x - 1) * p.tile_bytes;
    tile_end_ += gridDim.x * p.tile_bytes;
  }

  uint32_t at;

 private:
  uint32_t tile_end_;
};

// `next` returns the vectors of the step at `at`. Steps are read in the order of a Walk.
template <int kReads, Loads kLoads>
class Reader {
 public:
  __device__ __forceinline__ explicit Reader(const VariantArgs&) {}
  __device__ __forceinline__ void next(const VariantArgs& p, uint32_t at, uint4 (&in)[kReads]) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < kReads; ++k) {
      const char* const address = p.of.in[k] + at;
      in[k] = kLoads == Loads::kOnce ? load_global_once(address) : load_global(address);
    }
  }
};

template <int kReads>
class Reader<kReads, Loads::kPrefetch> {
 public:
  __device__ __forceinline__ explicit Reader(const VariantArgs& p) : ahead_(p) { load(p); }
  __device__ __forceinline__ void next(const VariantArgs& p, uint32_t, uint4 (&in)[kReads]) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < kReads; ++k) in[k] = held_[k];
    ahead_.advance(p);
    load(p);
  }

 private:
  __device__ __forceinline__ void load(const VariantArgs& p) {
    if (ahead_.at >= p.bytes) return;
    VAE_FUSED_UNROLL
    for (int k = 0; k < kReads; ++k) held_[k] = load_global(p.of.in[k] + ahead_.at);
  }

  Walk ahead_;
  uint4 held_[kReads];
};

// Each thread copies only data that it reads itself, so it never waits for other threads.
template <int kReads>
class Reader<kReads, Loads::kRing> {
 public:
  __device__ __forceinline__ explicit Reader(const VariantArgs& p) : ahead_(p) {
    __shared__ uint4 ring[kDepth][kReads][kThreads];
    ring_ = &ring[0][0][threadIdx.x];
    VAE_FUSED_UNROLL
    for (int d = 0; d < kDepth - 1; ++d) copy(p, d);
  }
  __device__ __forceinline__ void next(const VariantArgs& p, uint32_t, uint4 (&in)[kReads]) {
    const int last = stage_ == 0 ? kDepth - 1 : stage_ - 1;  // the stage that was read before
    copy(p, last);
    copies_.wait<kDepth - 1>();
    VAE_FUSED_UNROLL
    for (int k = 0; k < kReads; ++k) in[k] = load_shared(slot(stage_, k));
    stage_ = stage_ == kDepth - 1 ? 0 : stage_ + 1;
  }

 private:
  static constexpr int kDepth = 3;

  __device__ __forceinline__ uint4* slot(int stage, int k) const {
    return ring_ + (stage * kReads + k) * kThreads;
  }
  __device__ __forceinline__ void copy(const VariantArgs& p, int stage) {
    if (ahead_.at < p.bytes) {
      VAE_FUSED_UNROLL
      for (int k = 0; k < kReads; ++k) copies_.copy(slot(stage, k), p.of.in[k] + ahead_.at);
    }
    copies_.commit();
    ahead_.advance(p);
  }

  Walk ahead_;
  AsyncCopies copies_;
  uint4* ring_;
  int stage_ = 0;
};

// ------------------------------------------------------------------------------------------------
// Steps
// ------------------------------------------------------------------------------------------------

struct ForwardStep {
  static constexpr int kReads = 2, kWrites = 1;
  static constexpr bool kReduces = true;

  __device__ __forceinline__ explicit ForwardStep(const VariantArgs&) {}

  // Returns twice the KL of the step's elements.
  template <typename S, class RoundKeys>
  __device__ __forceinline__ float compute(const Options& f, const RoundKeys& keys, uint32_t low,
                                           uint32_t high, const uint4 (&in)[kReads],
                                           uint4 (&out)[kWrites]) const {
    float sum = 0;
    VAE_FUSED_UNROLL
    for (int b = 0; b < kPerVector<S> / kChunk; ++b) {
      float mu[kChunk], raw[kChunk], z[kChunk];
      unpack(in[0], b, mu, S{});
      unpack(in[1], b, raw, S{});
      sample_chunk<S>(f, keys, low + b, high, mu, raw, b == 0, z, sum);
      pack(z, b, out[0], S{});
    }
    return sum;
  }
};

struct BackwardStep {
  static constexpr int kReads = 3, kWrites = 2;
  static constexpr bool kReduces = false;

  __device__ __forceinline__ explicit BackwardStep(const VariantArgs& p)
      : grad_kl_(p.kl_scale * *p.grad_kl) {}

  template <typename S, class RoundKeys>
  __device__ __forceinline__ float compute(const Options& f, const RoundKeys& keys, uint32_t low,
                                           uint32_t high, const uint4 (&in)[kReads],
                                           uint4 (&out)[kWrites]) const {
    VAE_FUSED_UNROLL
    for (int b = 0; b < kPerVector<S> / kChunk; ++b) {
      float mu[kChunk], raw[kChunk], gz[kChunk], graw[kChunk];
      unpack(in[0], b, mu, S{});
      unpack(in[1], b, raw, S{});
      unpack(in[2], b, gz, S{});
      gradients_of_chunk<S>(f, keys, low + b, high, mu, raw, grad_kl_, gz, graw);
      pack(gz, b, out[0], S{});
      pack(graw, b, out[1], S{});
    }
    return 0;
  }

 private:
  float grad_kl_;
};

// ------------------------------------------------------------------------------------------------
// The kernel
// ------------------------------------------------------------------------------------------------

__device__ __forceinline__ void combine(const VariantArgs& p) {
  const double sum = cuda::block_sum(
      cuda::sum_parts(p.partials, p.tiles, static_cast<int>(threadIdx.x), kThreads));
  if (threadIdx.x == 0) {
    *p.kl = static_cast<float>(0.5 * static_cast<double>(p.kl_scale) * sum);
  }
}

// Whether the calling block is the last of the grid.
__device__ __forceinline__ bool is_last(const VariantArgs& p) {
  __shared__ bool last;
  if (p.ticket == Ticket::kSecondLaunch) return false;
  if (threadIdx.x == 0) {
    unsigned int ticket;
    if (p.ticket == Ticket::kFences) {
      __threadfence();
      ticket = atomicInc(p.counter, gridDim.x - 1);
      __threadfence();
    } else {
      ticket = increment_acq_rel(p.counter, gridDim.x - 1);
    }
    last = ticket == gridDim.x - 1;
  }
  __syncthreads();
  return last;
}

template <typename S, class Step, Keys kKeys, Loads kLoads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    ab_kernel(const __grid_constant__ VariantArgs p, const __grid_constant__ Options f) {
  constexpr uint32_t kBytesOfChunk = kChunk * sizeof(S);
  const KeySource<kKeys> keys(p);
  const Step step(p);
  Reader<Step::kReads, kLoads> reader(p);
  for (uint32_t t = blockIdx.x; t < p.tiles; t += gridDim.x) {
    const uint32_t begin = t * p.tile_bytes, rest = p.bytes - begin;
    const uint32_t end = begin + (rest < p.tile_bytes ? rest : p.tile_bytes);
    double sum = 0;
#pragma unroll 1
    for (uint32_t at = begin + threadIdx.x * 16; at < end; at += kStepBytes) {
      uint4 in[Step::kReads], out[Step::kWrites];
      reader.next(p, at, in);
      const float kl =
          step.template compute<S>(f, keys.get(p), p.low + at / kBytesOfChunk, p.high, in, out);
      VAE_FUSED_UNROLL
      for (int k = 0; k < Step::kWrites; ++k) store_global(p.of.out[k] + at, out[k]);
      if (Step::kReduces) sum += static_cast<double>(kl);
    }
    if constexpr (Step::kReduces) {
      sum = cuda::block_sum(sum);
      if (threadIdx.x == 0) p.partials[t] = sum;
      __syncthreads();  // before the next sum of the block
    }
  }
  if constexpr (Step::kReduces) {
    if (is_last(p)) combine(p);
  }
}

// Launch bounds have no effect on the emulated device, so kernels that differ only in them are
// compiled once for it.
#if defined(VAE_FUSED_EMULATOR)
constexpr int bound(int) { return 1; }
#else
constexpr int bound(int blocks) { return blocks; }
#endif

template <typename S, class Step, Keys kKeys, Loads kLoads, int kBlocks>
Variant variant_of(Direction direction, DType dtype) {
  const auto launch = [](const VariantArgs& args, int64_t blocks, cudaStream_t stream) -> int {
    Options options = math::default_options<float>(math::LatentOptions<double>());
    if (!Step::kReduces) options = math::without_clip(options);
    return cuda::launch(ab_kernel<S, Step, kKeys, kLoads, bound(kBlocks)>, blocks, stream, args,
                        options);
  };
  const auto cost = [] {
    return cost_of(ab_kernel<S, Step, kKeys, kLoads, bound(kBlocks)>, kThreads);
  };
  return {direction, dtype, kKeys, kLoads, kBlocks, launch, cost};
}

// The variants of one direction and dtype. Keys in registers are not combined with loads further
// ahead, for which they leave no registers.
template <typename S, class Step>
std::vector<Variant> variants_of(Direction d, DType t) {
  using K = Keys;
  using L = Loads;
  return {
      variant_of<S, Step, K::kShared, L::kPlain, 3>(d, t),
      variant_of<S, Step, K::kShared, L::kPlain, 4>(d, t),
      variant_of<S, Step, K::kShared, L::kPlain, 5>(d, t),
      variant_of<S, Step, K::kRegisters, L::kPlain, 3>(d, t),
      variant_of<S, Step, K::kRegisters, L::kPlain, 4>(d, t),
      variant_of<S, Step, K::kRegisters, L::kPlain, 5>(d, t),
      variant_of<S, Step, K::kParameters, L::kPlain, 3>(d, t),
      variant_of<S, Step, K::kParameters, L::kPlain, 4>(d, t),
      variant_of<S, Step, K::kParameters, L::kPlain, 5>(d, t),
      variant_of<S, Step, K::kShared, L::kOnce, 4>(d, t),
      variant_of<S, Step, K::kShared, L::kPrefetch, 3>(d, t),
      variant_of<S, Step, K::kShared, L::kPrefetch, 4>(d, t),
      variant_of<S, Step, K::kShared, L::kPrefetch, 5>(d, t),
      variant_of<S, Step, K::kShared, L::kRing, 3>(d, t),
      variant_of<S, Step, K::kShared, L::kRing, 4>(d, t),
      variant_of<S, Step, K::kShared, L::kRing, 5>(d, t),
      variant_of<S, Step, K::kParameters, L::kPrefetch, 3>(d, t),
      variant_of<S, Step, K::kParameters, L::kPrefetch, 4>(d, t),
      variant_of<S, Step, K::kParameters, L::kPrefetch, 5>(d, t),
      variant_of<S, Step, K::kParameters, L::kRing, 3>(d, t),
      variant_of<S, Step, K::kParameters, L::kRing, 4>(d, t),
      variant_of<S, Step, K::kParameters, L::kRing, 5>(d, t),
  };
}

}  // namespace vae_fused::probe
