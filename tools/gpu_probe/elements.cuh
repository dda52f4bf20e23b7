// The arithmetic of four elements, a block of noise, and their conversion from and to words in
// memory. The formulas are those of csrc/math; only the loops around them belong to the probe.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "cuda/launch.cuh"
#include "math/latent/gaussian.h"
#include "math/normal.h"
#include "math/storage.h"

namespace vae_fused::probe {

using cuda::kThreads;

constexpr int kChunk = 4;  // normals per block of noise

template <typename S>
constexpr int kPerVector = 16 / sizeof(S);

// Chunk b of a vector of 16 bytes.
__device__ __forceinline__ void unpack(const uint4& words, int, float (&out)[kChunk], float) {
  std::memcpy(out, &words, sizeof out);
}
template <typename S>
__device__ __forceinline__ void unpack(const uint4& words, int b, float (&out)[kChunk], S) {
  const uint32_t first = b ? words.z : words.x, second = b ? words.w : words.y;
  math::widen(math::Pair<S>{first}, out[0], out[1]);
  math::widen(math::Pair<S>{second}, out[2], out[3]);
}

__device__ __forceinline__ void pack(const float (&in)[kChunk], int, uint4& words, float) {
  std::memcpy(&words, in, sizeof in);
}
template <typename S>
__device__ __forceinline__ void pack(const float (&in)[kChunk], int b, uint4& words, S) {
  math::Pair<S> first, second;
  math::narrow(in[0], in[1], first);
  math::narrow(in[2], in[3], second);
  (b ? words.z : words.x) = first.u;
  (b ? words.w : words.y) = second.u;
}

using Options = math::DefaultOptions<float>;

// Computes z of four elements and adds twice their KL to `sum`, or begins the sum with it.
template <typename S, class RoundKeys>
__device__ __forceinline__ void sample_chunk(const Options& f, const RoundKeys& keys, uint32_t low,
                                             uint32_t high, const float (&mu)[kChunk],
                                             const float (&raw)[kChunk], bool begins,
                                             float (&z)[kChunk], float& sum) {
  math::Posterior<float> q[kChunk];
  math::posterior<math::kCoarse<S>>(f, mu, raw, q);
  math::normals<math::kCoarse<S>>(math::philox(keys, low, high), z);
  VAE_FUSED_UNROLL
  for (int j = 0; j < kChunk; ++j) {
    z[j] = math::sample(f, q[j].mu, q[j].scale.sigma, z[j]);
    const float kl = math::kl_times_two(f, f.is_linear_form, math::relative(f, q[j], {}));
    sum = begins && j == 0 ? kl : sum + kl;
  }
}

// Replaces the gradients of z of four elements by those of mu, and computes those of raw. `grad_kl`
// is the gradient of their KL.
template <typename S, class RoundKeys>
__device__ __forceinline__ void gradients_of_chunk(const Options& f, const RoundKeys& keys,
                                                   uint32_t low, uint32_t high,
                                                   const float (&mu)[kChunk],
                                                   const float (&raw)[kChunk], float grad_kl,
                                                   float (&gz)[kChunk], float (&graw)[kChunk]) {
  math::Posterior<float> q[kChunk];
  math::posterior<math::kCoarse<S>>(f, mu, raw, q);
  float eps[kChunk];
  math::normals<math::kCoarse<S>>(math::philox(keys, low, high), eps);
  VAE_FUSED_UNROLL
  for (int j = 0; j < kChunk; ++j) {
    graw[j] = math::sample_adjoint(f, gz[j] * eps[j], q[j].scale.dsigma);
    const auto adjoint =
        math::kl_adjoint(f, f.is_linear_form, math::relative(f, q[j], {}), 1.0f, grad_kl);
    gz[j] = (gz[j] + adjoint.mu) * q[j].dmu;
    graw[j] = math::undo_doubling(f, graw[j] + math::chain(adjoint.x, q[j].scale.dx));
    if (q[j].is_clamped) graw[j] = 0;
  }
}

}  // namespace vae_fused::probe
