// The Gaussians of a step. All elements of a step are loaded together and computed chunk by chunk.
#pragma once

#include "cuda/latent/policy.cuh"
#include "cuda/noise.cuh"
#include "params/latent.h"

namespace vae_fused::cuda {

// The tensors of a call in the order of their offsets. Only kernels for general options use the
// last three tensors. The noise offset is a position in the noise stream of a key or in an explicit
// eps.
enum Slot : int { kMu, kRaw, kNoise, kMean, kPriorRaw, kMask, kSlots };

template <class Options>
constexpr int kGaussianSlots = kGeneral<Options> ? kSlots : kMean;

// Sets `strides` to the strides of the tensors in these slots.
template <class Options, class Params, int N>
__device__ __forceinline__ void gaussian_strides(const Params& p, const int64_t* (&strides)[N]) {
  strides[kMu] = p.gaussians.mu.stride;
  strides[kRaw] = p.gaussians.raw.stride;
  strides[kNoise] = p.space.noise_stride;
  if constexpr (kGeneral<Options>) {
    strides[kMean] = p.gaussians.prior_mean.stride;
    strides[kPriorRaw] = p.gaussians.prior_raw.stride;
    strides[kMask] = p.gaussians.mask.stride;
  }
}

template <typename S, Access kAccess, class Options, bool kFast>
class GaussianStep {
  using T = arithmetic_t<S>;
  static constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;

 public:
  Pack<S, N> mu, raw;

  // Reads mu only if `needs_mu`, and the prior only if `with_prior`.
  template <bool kWhole>
  __device__ __forceinline__ void load(const Space& space, const Gaussians& gaussians,
                                       const int64_t* at, const Span<kWhole>& span, bool needs_mu,
                                       bool with_prior) {
    mu = {};
    raw = {};
    if (needs_mu) load_step(space, gaussians.mu, at[kMu], span, mu);
    if (!kGeneral<Options> || gaussians.raw.data) {
      load_step(space, gaussians.raw, at[kRaw], span, raw);
    }
    if constexpr (kGeneral<Options>) {
      if (with_prior && gaussians.prior_mean.data) {
        load_step(space, gaussians.prior_mean, at[kMean], span, general.mean);
      }
      if (with_prior && gaussians.prior_raw.data) {
        load_step(space, gaussians.prior_raw, at[kPriorRaw], span, general.prior_raw);
      }
      if (gaussians.mask.data) {
        cuda::load<S, kAccess, kFast, true, uint8_t>(space, gaussians.mask, at[kMask], span,
                                                     general.mask);
      }
    }
  }

  // Computes the posteriors of chunk b and, if `with_prior`, its priors.
  template <bool kWhole>
  __device__ __forceinline__ void compute(const Gaussians& gaussians, const Options& options, int b,
                                          bool with_prior, math::Posterior<T> (&q)[C],
                                          math::Prior<T> (&p)[C]) const {
    T means[C], scales[C];
    widen<kAccess, kWhole, C>(mu, b, means);
    widen<kAccess, kWhole, C>(raw, b, scales);
    math::posterior<math::kCoarse<S>>(options, means, scales, q);
    if constexpr (kGeneral<Options>) {
      if (!gaussians.raw.data) {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) q[j].scale = {T(1), T(0), T(0), T(0)};
      }
      if (!with_prior) return;
      if (gaussians.prior_mean.data) {
        widen<kAccess, kWhole, C>(general.mean, b, means);
      } else {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) means[j] = options.prior_mean;
      }
      widen<kAccess, kWhole, C>(general.prior_raw, b, scales);
      math::prior(options, gaussians.prior_raw.data, means, scales, p);
    }
  }

  // Whether element j of chunk b is inside the tile and unmasked. The results of all other elements
  // are 0. Kernels for default options need no check, because they load zeros outside the tile, and
  // the KL of these zeros is 0.
  template <bool kWhole>
  __device__ __forceinline__ bool counts(const Gaussians& gaussians, const Span<kWhole>& span,
                                         int b, int j) const {
    if constexpr (kGeneral<Options>) {
      return span.has(b * C + j) &&
             (!gaussians.mask.data || general.mask.s[place_of<S, kAccess>(b, j)]);
    }
    return true;
  }

 private:
  struct None {};
  struct General {
    Pack<S, N> mean, prior_raw;
    Pack<uint8_t, N> mask;
  };

  template <bool kWhole>
  static __device__ __forceinline__ void load_step(const Space& space, const Operand& operand,
                                                   int64_t offset, const Span<kWhole>& span,
                                                   Pack<S, N>& pack) {
    cuda::load<S, kAccess, kFast, kGeneral<Options>>(space, operand, offset, span, pack);
  }

  std::conditional_t<kGeneral<Options>, General, None> general{};
};

// Whether the kernels for default options can compute the Gaussians of a call.
template <class Params>
bool has_default_options(const WithScalars<Params>& p) {
  return has_default_options(p.gaussians) && !p.gaussians.mask.data && !p.scalars.any();
}

// Converts the options to the form that a kernel requires.
template <typename T, bool kIsDefault>
auto options_as(const math::LatentOptions<double>& options, const math::DeviceScalars& scalars) {
  if constexpr (kIsDefault) {
    return math::default_options<T>(options);
  } else {
    return OptionsOnDevice<T>{{math::narrowed<T>(options)}, scalars};
  }
}

// Calls launch(access, options), where `access` is the access mode of the chosen kernel as a
// constant, and the options have the form that this kernel requires. With `at_sample`, the KL of
// the call is estimated from its samples. Such a call has neither default options nor kernels for
// kChannelsLast.
template <typename S, class Params, typename Launch>
cudaError_t with_options(const KernelChoice& choice, const WithScalars<Params>& p, bool at_sample,
                         const Launch& launch) {
  using T = arithmetic_t<S>;
  if (at_sample) {
    const OptionsAtSample<T> options{options_as<T, false>(p.gaussians.options, p.scalars)};
    if constexpr (kGeneralHasVectors<S>) {
      constexpr std::integral_constant<Access, Access::kStrided> strided;
      if (choice.access == Access::kStrided) return launch(strided, options);
    }
    constexpr std::integral_constant<Access, Access::kScalar> scalar;
    return launch(scalar, options);
  }
  return with_kernel<S>(choice, [&](auto access, auto is_default) {
    return launch(access, options_as<T, is_default>(p.gaussians.options, p.scalars));
  });
}

// Returns the part of a kernel's options that the formulas for samples and the KL read.
template <typename T>
__device__ __forceinline__ const math::DefaultOptions<T>& weights_of(
    const math::DefaultOptions<T>& options) {
  return options;
}
template <typename T>
__device__ __forceinline__ math::Weights<T> weights_of(const OptionsOnDevice<T>& options) {
  return {options, options.scalars};
}
template <class Options>
using weights_t = decltype(weights_of(std::declval<const Options&>()));

}  // namespace vae_fused::cuda
