// The noise generator for one target. noise.h declares the functions, and vector.h defines the
// vectors.
//
// A step generates kLanes blocks of noise. The words of several steps are first stored in a buffer,
// because Philox and Box-Muller together need more registers than the machine has.
#pragma once

#include <cstring>

#include "cpu/noise.h"
#include "cpu/vector.h"
#include "math/normal.h"

// Enables instruction scheduling before register allocation, which GCC disables by default on x86.
// The operations in csrc/math follow the order of the formulas, for several vectors side by side.
// Reordering them saves 8 % of the time on AVX2, where the original order runs out of registers.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("schedule-insns", "sched-pressure")
#endif

// Makes all calls use one compiled copy of a function. Without noclone, GCC compiles another copy
// for constant arguments. clang does not have the noclone attribute.
#if defined(__GNUC__) && !defined(__clang__)
#define VAE_FUSED_NOCLONE __attribute__((noinline, noclone))
#else
#define VAE_FUSED_NOCLONE __attribute__((noinline))
#endif

namespace vae_fused::cpu::VAE_FUSED_TARGET {

// Lane i of a vector of Bits or Floats contains block g (i % 4) + i / 4 of that vector, where g is
// the number of 16-byte groups in a vector. With this order, normals are interleaved without a
// shuffle across groups: after a 4 x 4 transpose within each group, vector k contains blocks g k to
// g k + g - 1.
constexpr int kGroups = kWidth / 4;

VAE_FUSED_HD int block_of_lane(int i) {
  return i / kWidth * kWidth + i % 4 * kGroups + i % kWidth / 4;
}

// Returns the counters first, first + 1, ..., arranged so that `packed` produces the lane order of
// `block_of_lane`.
VAE_FUSED_HD Wide counters(uint64_t first) {
  u64 a{};
  for (int i = 0; i < kWidth / 2; ++i) a[i] = block_of_lane(packed_lane(i));
  a += first;
  return {a, a + 2 * kGroups, a + kWidth, a + (kWidth + 2 * kGroups)};
}

constexpr int kBatch = 8;
struct Batch {
  alignas(64) uint32_t words[kBatch][4][kLanes];
};

template <typename High>
VAE_FUSED_HD void put_words(uint64_t seed, Wide low, High high, uint32_t (&to)[4][kLanes]) {
  const math::Words<Bits> words = math::philox(math::Seed(seed), low, high);
  VAE_FUSED_UNROLL
  for (int j = 0; j < 4; ++j) {
    store(words.w[j].a, to[j]);
    store(words.w[j].b, to[j] + kWidth);
  }
}

VAE_FUSED_HD math::Words<Bits> words_of(const uint32_t (&from)[4][kLanes]) {
  math::Words<Bits> words;
  VAE_FUSED_UNROLL
  for (int j = 0; j < 4; ++j) words.w[j] = {load(from[j]), load(from[j] + kWidth)};
  return words;
}

// The number of cache lines that half a step prefetches from each run. A whole step prefetches as
// many bytes from each run as it generates.
constexpr int kLinesFetched = kLanes / 8;

// The high word of the counter is usually the same for all blocks. It is then a scalar instead of a
// vector.
VAE_FUSED_HD void make_words(uint64_t seed, uint64_t first, int steps, Batch& batch,
                             Prefetcher& prefetcher) {
  const uint64_t blocks = static_cast<uint64_t>(steps) * kLanes;
  const auto high = static_cast<uint32_t>(first >> 32);
  if (static_cast<uint32_t>((first + blocks - 1) >> 32) == high) {
    for (int i = 0; i < steps; ++i) {
      prefetcher.fetch<kLinesFetched>();
      put_words(seed, counters(first + i * kLanes), high, batch.words[i]);
    }
  } else {
    for (int i = 0; i < steps; ++i) {
      const Wide low = counters(first + i * kLanes);
      put_words(seed, low, high_halves(low), batch.words[i]);
    }
  }
}

// Interleaves the normals of kWidth blocks, and stores them.
VAE_FUSED_HD void interleave(Float n0, Float n1, Float n2, Float n3, float* out) {
  const f32 low01 = shuffle<0, 1, 0, 1>(n0.v, n1.v), low23 = shuffle<0, 1, 0, 1>(n2.v, n3.v);
  const f32 high01 = shuffle<2, 3, 2, 3>(n0.v, n1.v), high23 = shuffle<2, 3, 2, 3>(n2.v, n3.v);
  store(shuffle<0, 2, 0, 2>(low01, low23), out);
  store(shuffle<1, 3, 1, 3>(low01, low23), out + kWidth);
  store(shuffle<0, 2, 0, 2>(high01, high23), out + 2 * kWidth);
  store(shuffle<1, 3, 1, 3>(high01, high23), out + 3 * kWidth);
}

VAE_FUSED_HD void make_normals(const uint32_t (&from)[4][kLanes], float* out) {
  Floats n[4];
  math::normals(words_of(from), n);
  interleave(n[0].a, n[1].a, n[2].a, n[3].a, out);
  interleave(n[0].b, n[1].b, n[2].b, n[3].b, out + 4 * kWidth);
}

VAE_FUSED_HD void make_normals(const uint32_t (&from)[4][kLanes], double* out) {
  for (int i = 0; i < kLanes; ++i) {
    double block[2];
    math::normals(math::Words<uint32_t>{{from[0][i], from[1][i], from[2][i], from[3][i]}}, block);
    std::memcpy(out + 2 * block_of_lane(i), block, sizeof block);
  }
}

// All normals are computed here, because a compiler may round differently in another copy of this
// code.
template <typename T>
VAE_FUSED_NOCLONE static void make_normals(const Batch& batch, int steps, T* out,
                                           Prefetcher& prefetcher) {
  constexpr int kStep = math::kNormalsPerBlock<T> * kLanes;
  for (int i = 0; i < steps; ++i) {
    prefetcher.fetch<kLinesFetched>();
    make_normals(batch.words[i], out + i * kStep);
  }
}

template <typename T>
static void fill_steps(uint64_t seed, uint64_t first, int steps, T* out, Prefetcher& prefetcher) {
  constexpr int kStep = math::kNormalsPerBlock<T> * kLanes;
  Batch batch;
  while (steps > 0) {
    const int n = steps < kBatch ? steps : kBatch;
    make_words(seed, first, n, batch, prefetcher);
    make_normals(batch, n, out, prefetcher);
    first += static_cast<uint64_t>(n) * kLanes;
    out += n * kStep;
    steps -= n;
  }
}

template <typename T>
static void fill_from(const Key& key, uint64_t index, int n, T* out, Prefetcher& prefetcher) {
  constexpr int kPer = math::kNormalsPerBlock<T>, kStep = kPer * kLanes;
  uint64_t block = key.offset + index / kPer;
  int skip = static_cast<int>(index % kPer);
  while (n > 0) {
    int steps = 1, take;
    if (skip == 0 && n >= kStep) {
      steps = n / kStep;
      take = steps * kStep;
      fill_steps(key.seed, block, steps, out, prefetcher);
    } else {  // part of a step
      alignas(64) T whole[kStep];
      take = n < kStep - skip ? n : kStep - skip;
      fill_steps(key.seed, block, 1, whole, prefetcher);
      std::memcpy(out, whole + skip, take * sizeof(T));
      skip = 0;
    }
    block += static_cast<uint64_t>(steps) * kLanes;
    out += take;
    n -= take;
  }
}

// Stores the two words from which the normal of each lane is computed. Each lane computes a whole
// block, which has enough words for four normals.
VAE_FUSED_HD void put_pairs_at(const Key& key, const uint64_t (&indices)[kLanes],
                               uint32_t (*to)[kLanes]) {
  constexpr int kHalf = kWidth / 2;
  const Wide index = {load(indices), load(indices + kHalf), load(indices + kWidth),
                      load(indices + kWidth + kHalf)};
  const u64 offset = key.offset - u64{};
  const Wide block = {(index.a >> 2) + offset, (index.b >> 2) + offset, (index.c >> 2) + offset,
                      (index.d >> 2) + offset};
  const math::Words<Bits> words = math::philox(math::Seed(key.seed), block, high_halves(block));
  Bits first, second;
  math::words_of_pair(words, packed(index) & 3u, first, second);
  store(first.a, to[0]);
  store(first.b, to[0] + kWidth);
  store(second.a, to[1]);
  store(second.b, to[1] + kWidth);
}

// A step computes two of the requested normals in each lane, one from each of the lane's two pairs
// of words.
static void fill_pairs_at(const Key& key, const uint64_t* indices, int n, float* out) {
  Batch batch;
  for (int pair = 0; pair < 2; ++pair) {
    alignas(64) uint64_t ordered[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int at = pair * kLanes + packed_lane(i);
      ordered[i] = indices[at < n ? at : n - 1];
    }
    put_pairs_at(key, ordered, &batch.words[0][2 * pair]);
  }
  float whole[4 * kLanes];
  Prefetcher nothing(0);
  make_normals(batch, 1, whole, nothing);
  for (int at = 0; at < n; ++at) {
    out[at] = whole[4 * block_of_lane(at % kLanes) + at / kLanes * 2 + indices[at] % 2];
  }
}

void fill(const Key& key, uint64_t index, int n, float* out, Prefetcher& prefetcher) {
  fill_from(key, index, n, out, prefetcher);
}
void fill(const Key& key, uint64_t index, int n, double* out, Prefetcher& prefetcher) {
  fill_from(key, index, n, out, prefetcher);
}

void fill_at(const Key& key, const uint64_t* indices, int n, float* out) {
  for (int done = 0; done < n; done += 2 * kLanes) {
    const int rest = n - done;
    fill_pairs_at(key, indices + done, rest < 2 * kLanes ? rest : 2 * kLanes, out + done);
  }
}

void fill_at(const Key& key, const uint64_t* indices, int n, double* out) {
  const math::Seed seed(key.seed);
  for (int j = 0; j < n; ++j) out[j] = math::normal_at<double>(seed, key.offset, indices[j]);
}

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
