// The forward CUDA kernel computes the sample, the KL and its sums in one launch. A thread block
// computes one or more tiles.
//
// Bytes per float element: 8 read, 4 written. The partial sums add 8 bytes per 2048 elements.
#include "cuda/latent/gaussians.cuh"
#include "cuda/row_kernel.cuh"

namespace vae_fused::cuda {
namespace {

// The state that the threads of a thread block share.
template <typename S, Access kAccess, class Options>
class ForwardCall;

// A step of a thread: `load` issues its loads, and `finish` computes and stores its results. kFast
// selects the fast path.
template <typename S, Access kAccess, class Options, bool kFast>
class ForwardStep {
  using T = arithmetic_t<S>;
  static constexpr bool kHasAllOperands = kFast || kAccess == Access::kContiguous;
  static constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  static constexpr int kZ = kGaussianSlots<Options>, kOffsets = kZ + 1;

 public:
  using Call = ForwardCall<S, kAccess, Options>;

  template <bool kWhole, class Rows>
  __device__ __forceinline__ void load(const Call& call, const Span<kWhole>& span,
                                       const Rows& rows) {
    const ForwardParams& p = call.params;
    const int64_t* strides[kOffsets];
    gaussian_strides<Options>(p, strides);
    strides[kZ] = p.z.stride;
    locate<S, kAccess, kFast>(p.space, strides, span.element(), at_);
    gaussians_.load(p.space, p.gaussians, at_, span, true, rows.is_present());
    if (has_eps(p)) {
      cuda::load<S, kAccess, kFast, kGeneral<Options>>(p.space, p.eps, at_[kNoise], span, eps_);
    }
  }

  template <bool kWhole, class Rows>
  __device__ __forceinline__ void finish(const Call& call, const Span<kWhole>& span, Rows& rows) {
    const ForwardParams& p = call.params;
    const Options& options = call.options;
    const auto& weights = call.weights;
    const auto noise = call.noise_stream.template for_step<kFast>();
    const bool sampled = kHasAllOperands || p.z.data,
               with_kl = kHasAllOperands || rows.is_present();
    VAE_FUSED_UNROLL
    for (int b = 0; b < N / C; ++b) {
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      T eps[C];
      // The float posterior has a branch, and ptxas moves no instruction across it. The noise needs
      // no load, so it is computed first. The posterior of 16-bit elements has no branch, so ptxas
      // moves the noise to the front on its own.
      constexpr bool kNoiseFirst = !math::kCoarse<S>;
      if (kNoiseFirst && sampled) first_noise(p, noise, span, b, eps);
      gaussians_.template compute<kWhole>(p.gaussians, options, b, with_kl, q, prior);
      if (!kNoiseFirst && sampled) first_noise(p, noise, span, b, eps);
      if (sampled) sample(p, weights, noise, span, b, q, eps);
      Pack<T, C> kl;
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        kl.s[j] = divergence(options, weights, q[j], prior[j], eps[j]);
        if (kGeneral<Options> && !gaussians_.counts(p.gaussians, span, b, j)) kl.s[j] = 0;
      }
      rows.add(span, b, kl);
    }
    if (sampled) store<S, kAccess, kFast>(p.space, p.z, at_[kZ], span, z_.pack);
  }

 private:
  static __device__ __forceinline__ bool has_eps(const ForwardParams& p) {
    return kGeneral<Options> && p.eps.data;
  }

  // Returns twice the KL of an element, or twice its estimate if the KL is estimated from samples.
  static __device__ __forceinline__ T divergence(const Options& options,
                                                 const weights_t<Options>& weights,
                                                 const math::Posterior<T>& q,
                                                 const math::Prior<T>& prior, T eps) {
    if constexpr (kAtSample<Options>) {
      const T d = math::relative_sample(weights, q.mu, q.scale.sigma, prior, eps);
      return math::log_ratio_times_two(weights, d, q.scale.x - prior.x, eps);
    } else {
      return math::kl_times_two(weights, weights.is_linear_form, math::relative(options, q, prior));
    }
  }

  // The noise of chunk b for the first sample.
  template <bool kWhole, class Keys>
  __device__ __forceinline__ void first_noise(const ForwardParams& p, const Noise<Keys>& noise,
                                              const Span<kWhole>& span, int b, T (&eps)[C]) {
    if (has_eps(p)) {
      widen<kAccess, kWhole, C>(eps_, b, eps);
    } else {
      draw<S, kAccess, kFast>(p.space, noise, span, at_[kNoise], b, eps);
    }
  }

  // Computes chunk b of z. The first sample is stored at the end of the step, and further samples
  // are stored here.
  template <bool kWhole, class Keys>
  __device__ __forceinline__ void sample(const ForwardParams& p, const weights_t<Options>& weights,
                                         const Noise<Keys>& noise, const Span<kWhole>& span, int b,
                                         const math::Posterior<T> (&q)[C], const T (&eps)[C]) {
    T z[C];
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      z[j] = math::sample(weights, q[j].mu, q[j].scale.sigma, eps[j]);
      if (kGeneral<Options> && !gaussians_.counts(p.gaussians, span, b, j)) z[j] = 0;
    }
    z_.template set<kWhole>(b, z);
    constexpr bool kSupportsSamples =
        kGeneral<Options> && kAccess != Access::kChannelsLast;  // see select_kernel
    for (int64_t s = 1; kSupportsSamples && s < p.gaussians.samples; ++s) {
      Pack<S, C> further;
      if (has_eps(p)) {
        load_chunk<S, kAccess>(p.space, p.eps, at_[kNoise], s, b, span, further);
        widen<kAccess, kWhole, C>(further, 0, z);
      } else {
        const int64_t at = at_[kNoise] + s * (p.space.rows * p.space.cols);
        draw<S, kAccess, false>(p.space, noise, span, at, b, z);
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        z[j] = math::sample(weights, q[j].mu, q[j].scale.sigma, z[j]);
        if (!gaussians_.counts(p.gaussians, span, b, j)) z[j] = 0;
      }
      narrow<kAccess, kWhole, C>(z, 0, further);
      store_chunk<S, kAccess>(p.z, at_[kZ], s, b, span, further);
    }
  }

  int64_t at_[kOffsets];
  GaussianStep<S, kAccess, Options, kFast> gaussians_;
  Pack<S, N> eps_;
  Results<S, kAccess> z_;
};

template <typename S, Access kAccess, class Options>
class ForwardCall {
 public:
  template <bool kFast>
  using Step = ForwardStep<S, kAccess, Options, kFast>;

  const ForwardParams& params;
  const Options& options;
  NoiseStream<kKeySource<kForwardKernel<Options>, S, kAccess>> noise_stream;
  weights_t<Options> weights;

  __device__ __forceinline__ ForwardCall(const ForwardParams& params, const Options& options)
      : params(params),
        options(options),
        noise_stream(params.key, params.key_out),
        weights(weights_of(options)) {}

  __device__ __forceinline__ bool try_fast_tile(const Tile& tile) {
    return try_share_high_word<S, kAccess>(params.space, tile, noise_stream);
  }
};

template <typename S, Access kAccess, class Options>
__global__ void __launch_bounds__(kThreads, kMinBlocks<kForwardKernel<Options>, S, kAccess>)
    forward_kernel(const __grid_constant__ ForwardParams p, const __grid_constant__ Options options,
                   const __grid_constant__ RowDisposition disposition,
                   const __grid_constant__ bool has_fast_path, int ticket) {
  __shared__ RowShared<S, kAccess> shared;
  ForwardCall<S, kAccess, Options> call(p, options);
  run_tiles<S, kAccess, kHasFastPath<kForwardKernel<Options>, S, kAccess>>(
      call, p.space, p.kl, disposition, has_fast_path, ticket, shared);
}

template <typename S>
cudaError_t forward_as(WithScalars<ForwardParams> p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  constexpr int C = kChunk<S, Access::kStrided>;
  const bool at_sample = p.kl.data && p.gaussians.options.at_sample;
  CallShape call;
  call.is_default = has_default_options(p) && !p.eps.data && !at_sample;
  call.has_channels_last = !at_sample;
  call.has_rows = p.kl.data;
  call.has_misaligned_rows = p.kl.data && p.space.cols == 1 && !is_aligned(p.kl.data, 16);
  call.has_all_operands = p.z.data && p.kl.data;
  call.draws_noise = p.z.data && !p.eps.data;
  call.samples = p.gaussians.samples;
  const KernelChoice choice = select_kernel<S>(p.space, operands_of(p), call);
  set_noise_strides(p.space, p.eps);

  p.kl.factor *= 0.5;  // the kernel computes twice the KL of an element
  RowPlan plan;
  cudaError_t error =
      plan_rows(p.space, p.kl, choice.access == Access::kScalar ? 1 : C, stream, plan);
  if (error != cudaSuccess) return error;
  error = with_options<S>(choice, p, at_sample, [&](auto access, const auto& options) {
    using Options = std::decay_t<decltype(options)>;
    return launch(forward_kernel<S, access, Options>, plan.blocks, stream, p, options,
                  plan.disposition, choice.has_fast_path, plan.ticket);
  });
  return error == cudaSuccess ? combine_rest<T>(plan, p.space, p.kl, stream) : error;
}

}  // namespace

int forward(const WithScalars<ForwardParams>& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return forward_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace vae_fused::cuda
