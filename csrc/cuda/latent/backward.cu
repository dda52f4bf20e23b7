// The backward CUDA kernel computes every gradient in one launch and regenerates the noise from the
// key.
//
// Bytes per float element: 12 read (mu, logvar, grad_z), 8 written. The kernel has no reduction.
#include "cuda/latent/gaussians.cuh"
#include "cuda/row_grads.cuh"

namespace vae_fused::cuda {
namespace {

// The state that the threads of a thread block share.
template <typename S, Access kAccess, class Options>
class BackwardCall;

// A step of a thread: `load` issues its loads, and `finish` computes and stores its results. kFast
// selects the fast path.
template <typename S, Access kAccess, class Options, bool kFast>
class BackwardStep {
  using T = arithmetic_t<S>;
  static constexpr bool kHasAllOperands = kFast || kAccess == Access::kContiguous,
                        kIsGeneral = kGeneral<Options>;
  static constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  // The slots after those of the Gaussians. Only kernels for general options use the last three
  // slots.
  enum : int {
    kGradZ = kGaussianSlots<Options>,
    kGradMu,
    kGradRaw,
    kGradEps,
    kGradMean,
    kGradPriorRaw
  };
  static constexpr int kOffsets = 1 + (kIsGeneral ? kGradPriorRaw : kGradRaw);

 public:
  using Call = BackwardCall<S, kAccess, Options>;

  template <bool kWhole, class Rows>
  __device__ __forceinline__ void load(const Call& call, const Span<kWhole>& span,
                                       const Rows& rows) {
    const BackwardParams& p = call.params;
    const Options& options = call.options;
    const bool with_kl = rows.is_present();
    const int64_t* strides[kOffsets];
    gaussian_strides<Options>(p, strides);
    strides[kGradZ] = p.grad_z.stride;
    strides[kGradMu] = p.grad_mu.stride;
    strides[kGradRaw] = p.grad_raw.stride;
    if constexpr (kIsGeneral) {
      strides[kGradEps] = p.grad_eps.stride;
      strides[kGradMean] = p.grad_prior_mean.stride;
      strides[kGradPriorRaw] = p.grad_prior_raw.stride;
    }
    locate<S, kAccess, kFast>(p.space, strides, span.element(), at_);
    const bool needs_mu = with_kl || options.mu_soft_clamp != T(0);
    gaussians_.load(p.space, p.gaussians, at_, span, needs_mu, with_kl);
    if constexpr (kAtSample<Options>) return;  // sum_estimates loads the rest, one sample at a time
    if (has_grad_z(p))
      cuda::load<S, kAccess, kFast, kIsGeneral>(p.space, p.grad_z, at_[kGradZ], span, gz_);
    if (has_grad_z(p) && has_eps(p)) {
      cuda::load<S, kAccess, kFast, kIsGeneral>(p.space, p.eps, at_[kNoise], span, eps_);
    }
  }

  template <bool kWhole, class Rows>
  __device__ __forceinline__ void finish(const Call& call, const Span<kWhole>& span, Rows& rows) {
    const BackwardParams& p = call.params;
    const Options& options = call.options;
    const auto& weights = call.weights;
    const auto noise = call.noise_stream.template for_step<kFast>();
    const bool with_kl = kHasAllOperands || rows.is_present();
    VAE_FUSED_UNROLL
    for (int b = 0; b < N / C; ++b) {
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      gaussians_.template compute<kWhole>(p.gaussians, options, b, with_kl, q, prior);
      T gz[C], graw[C];
      if constexpr (kAtSample<Options>) {
        sum_estimates(p, options, weights, noise, span, b, rows, q, prior, gz, graw);
      } else {
        sum_samples(p, weights, noise, span, b, q, gz, graw);
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          graw[j] =
              has_grad_z(p) ? math::sample_adjoint(weights, graw[j], q[j].scale.dsigma) : T(0);
        }
      }
      if (with_kl && !kAtSample<Options>) {
        T gk[C], gmean[C], gprior[C];
        rows.get(span + b * C, gk);
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          const auto adjoint =
              math::kl_adjoint(weights, weights.is_linear_form,
                               math::relative(options, q[j], prior[j]), prior[j].precision, gk[j]);
          gz[j] += adjoint.mu;
          graw[j] += math::chain(adjoint.x, q[j].scale.dx);
          gmean[j] = adjoint.mean;
          gprior[j] = math::chain(adjoint.prior_x, prior[j].dx);
          if (kIsGeneral && !gaussians_.counts(p.gaussians, span, b, j)) gmean[j] = gprior[j] = 0;
        }
        if constexpr (kIsGeneral) {
          prior_grads_.mean.template set<kWhole>(b, gmean);
          prior_grads_.raw.template set<kWhole>(b, gprior);
        }
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        gz[j] *= q[j].dmu;
        graw[j] = math::undo_doubling(options, graw[j]);
        if (q[j].is_clamped) graw[j] = 0;
        if (kIsGeneral && !gaussians_.counts(p.gaussians, span, b, j)) gz[j] = graw[j] = 0;
      }
      grad_mu_.template set<kWhole>(b, gz);
      grad_raw_.template set<kWhole>(b, graw);
    }
    store_all(p, span);
  }

 private:
  static __device__ __forceinline__ bool has_grad_z(const BackwardParams& p) {
    return kHasAllOperands || p.grad_z.data;
  }
  static __device__ __forceinline__ bool has_eps(const BackwardParams& p) {
    return kIsGeneral && p.eps.data;
  }
  static __device__ __forceinline__ bool needs_grad_mu(const BackwardParams& p) {
    return kHasAllOperands || p.grad_mu.data;
  }
  static __device__ __forceinline__ bool needs_grad_raw(const BackwardParams& p) {
    return kHasAllOperands || p.grad_raw.data;
  }
  static __device__ __forceinline__ bool needs_grad_eps(const BackwardParams& p) {
    return kIsGeneral && p.grad_eps.data;
  }

  // Sums over the samples of chunk b: gz becomes the sum of the gradients of z, and graw the sum of
  // these gradients times eps.
  template <bool kWhole, class Keys>
  __device__ __forceinline__ void sum_samples(const BackwardParams& p,
                                              const weights_t<Options>& weights,
                                              const Noise<Keys>& noise, const Span<kWhole>& span,
                                              int b, const math::Posterior<T> (&q)[C], T (&gz)[C],
                                              T (&graw)[C]) {
    T eps[C];
    widen<kAccess, kWhole, C>(gz_, b, gz);
    if (has_eps(p)) {
      widen<kAccess, kWhole, C>(eps_, b, eps);
    } else if (has_grad_z(p) && needs_grad_raw(p)) {
      draw<S, kAccess, kFast>(p.space, noise, span, at_[kNoise], b, eps);
    } else {
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) eps[j] = 0;
    }
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) graw[j] = gz[j] * eps[j];
    if constexpr (kIsGeneral) {
      if (needs_grad_eps(p)) {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          eps[j] = math::noise_adjoint(weights, gz[j], q[j].scale.sigma);
          if (!gaussians_.counts(p.gaussians, span, b, j)) eps[j] = 0;
        }
        grad_eps_.template set<kWhole>(b, eps);
      }
      constexpr bool kSupportsSamples = kAccess != Access::kChannelsLast;  // see select_kernel
      for (int64_t s = 1; kSupportsSamples && has_grad_z(p) && s < p.gaussians.samples; ++s) {
        T further[C];
        Pack<S, C> pack;
        load_chunk<S, kAccess>(p.space, p.grad_z, at_[kGradZ], s, b, span, pack);
        widen<kAccess, kWhole, C>(pack, 0, further);
        if (has_eps(p)) {
          load_chunk<S, kAccess>(p.space, p.eps, at_[kNoise], s, b, span, pack);
          widen<kAccess, kWhole, C>(pack, 0, eps);
        } else if (needs_grad_raw(p)) {
          const int64_t at = at_[kNoise] + s * (p.space.rows * p.space.cols);
          draw<S, kAccess, false>(p.space, noise, span, at, b, eps);
        }
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          gz[j] += further[j];
          graw[j] += further[j] * eps[j];
          eps[j] = math::noise_adjoint(weights, further[j], q[j].scale.sigma);
          if (!gaussians_.counts(p.gaussians, span, b, j)) eps[j] = 0;
        }
        if (!needs_grad_eps(p)) continue;
        narrow<kAccess, kWhole, C>(eps, 0, pack);
        store_chunk<S, kAccess>(p.grad_eps, at_[kGradEps], s, b, span, pack);
      }
    }
  }

  // Computes the gradients of chunk b if the KL is estimated from samples. Stores the gradient of
  // mu in gz, that of the raw scale in graw, and those of the prior in prior_grads_.
  template <bool kWhole, class Keys, class Rows>
  __device__ __forceinline__ void sum_estimates(const BackwardParams& p, const Options& options,
                                                const weights_t<Options>& weights,
                                                const Noise<Keys>& noise, const Span<kWhole>& span,
                                                int b, const Rows& rows,
                                                const math::Posterior<T> (&q)[C],
                                                const math::Prior<T> (&prior)[C], T (&gz)[C],
                                                T (&graw)[C]) {
    T direct[C], gmean[C], gprior[C];  // direct: the gradient of x, without the path through z
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) gz[j] = graw[j] = direct[j] = gmean[j] = gprior[j] = 0;
    for (int64_t s = 0; s < p.gaussians.samples; ++s) {
      T sample_grad[C] = {}, eps[C], gk[C];
      Pack<S, C> pack;
      if (has_grad_z(p)) {
        load_chunk<S, kAccess>(p.space, p.grad_z, at_[kGradZ], s, b, span, pack);
        widen<kAccess, kWhole, C>(pack, 0, sample_grad);
      }
      if (has_eps(p)) {
        load_chunk<S, kAccess>(p.space, p.eps, at_[kNoise], s, b, span, pack);
        widen<kAccess, kWhole, C>(pack, 0, eps);
      } else {
        const int64_t at = at_[kNoise] + s * (p.space.rows * p.space.cols);
        draw<S, kAccess, false>(p.space, noise, span, at, b, eps);
      }
      rows.get_for_sample(span + b * C, s, gk);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        const T sigma = q[j].scale.sigma;
        const T d = math::relative_sample(weights, q[j].mu, sigma, prior[j], eps[j]);
        const auto adjoint = math::log_ratio_adjoint(weights, options.stop_q, d, prior[j].precision,
                                                     sigma, eps[j], gk[j]);
        sample_grad[j] += adjoint.z;
        gz[j] += sample_grad[j] + adjoint.mu;
        graw[j] += sample_grad[j] * eps[j];
        direct[j] += adjoint.x;
        gmean[j] += adjoint.mean;
        gprior[j] += adjoint.prior_x;
        eps[j] = math::noise_adjoint(weights, sample_grad[j], sigma) + adjoint.eps;
        if (!gaussians_.counts(p.gaussians, span, b, j)) eps[j] = 0;
      }
      if (!needs_grad_eps(p)) continue;
      narrow<kAccess, kWhole, C>(eps, 0, pack);
      store_chunk<S, kAccess>(p.grad_eps, at_[kGradEps], s, b, span, pack);
    }
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      graw[j] = math::sample_adjoint(weights, graw[j], q[j].scale.dsigma) +
                math::chain(direct[j], q[j].scale.dx);
      gprior[j] = math::chain(gprior[j], prior[j].dx);
      if (!gaussians_.counts(p.gaussians, span, b, j)) gmean[j] = gprior[j] = 0;
    }
    prior_grads_.mean.template set<kWhole>(b, gmean);
    prior_grads_.raw.template set<kWhole>(b, gprior);
  }

  template <bool kWhole>
  __device__ __forceinline__ void store_all(const BackwardParams& p, const Span<kWhole>& span) {
    const auto put = [&](const Operand& to, int slot, const Results<S, kAccess>& results) {
      store<S, kAccess, kFast>(p.space, to, at_[slot], span, results.pack);
    };
    if (needs_grad_mu(p)) put(p.grad_mu, kGradMu, grad_mu_);
    if (needs_grad_raw(p)) put(p.grad_raw, kGradRaw, grad_raw_);
    if constexpr (kIsGeneral) {
      if (needs_grad_eps(p) && !kAtSample<Options>) put(p.grad_eps, kGradEps, grad_eps_);
      if (p.grad_prior_mean.data) put(p.grad_prior_mean, kGradMean, prior_grads_.mean);
      if (p.grad_prior_raw.data) put(p.grad_prior_raw, kGradPriorRaw, prior_grads_.raw);
    }
  }

  struct None {};
  struct PriorGrads {
    Results<S, kAccess> mean, raw;
  };

  int64_t at_[kOffsets];
  GaussianStep<S, kAccess, Options, kFast> gaussians_;
  Pack<S, N> gz_{}, eps_{};
  Results<S, kAccess> grad_mu_, grad_raw_, grad_eps_;
  std::conditional_t<kIsGeneral, PriorGrads, None> prior_grads_;
};

template <typename S, Access kAccess, class Options>
class BackwardCall {
 public:
  template <bool kFast>
  using Step = BackwardStep<S, kAccess, Options, kFast>;

  const BackwardParams& params;
  const Options& options;
  NoiseStream<kKeySource<kBackwardKernel<Options>, S, kAccess>> noise_stream;
  weights_t<Options> weights;

  __device__ __forceinline__ BackwardCall(const BackwardParams& params, const Options& options)
      : params(params), options(options), noise_stream(params.key), weights(weights_of(options)) {}

  __device__ __forceinline__ bool try_fast_tile(const Tile& tile) {
    return try_share_high_word<S, kAccess>(params.space, tile, noise_stream);
  }
};

template <typename S, Access kAccess, class Options>
__global__ void __launch_bounds__(kThreads, kMinBlocks<kBackwardKernel<Options>, S, kAccess>)
    backward_kernel(const __grid_constant__ BackwardParams p,
                    const __grid_constant__ Options options,
                    const __grid_constant__ GradSource source,
                    const __grid_constant__ bool has_fast_path) {
  using T = arithmetic_t<S>;
  constexpr bool kHasFast = kHasFastPath<kBackwardKernel<Options>, S, kAccess>;
  const Tile tile = tile_of(p.space, blockIdx.x);
  const T tile_grad = grad_of_tile<T>(p.grad_kl, source, tile);
  BackwardCall<S, kAccess, Options> call(p, options);
  constexpr bool kServesRows = kAccess != Access::kContiguous || kContiguousServesRows<S>;
  run_tile<S, kAccess, kHasFast, kServesRows>(call, p.space, tile, p.grad_kl, source, tile_grad,
                                              has_fast_path);
}

// Removes the exponent clip from the options, because gradients would mistake it for the clamp: see
// math::without_clip. The overloads here change nothing, because LatentOptions has no clip.
using math::without_clip;
template <typename T>
const OptionsOnDevice<T>& without_clip(const OptionsOnDevice<T>& options) {
  return options;
}
template <typename T>
const OptionsAtSample<T>& without_clip(const OptionsAtSample<T>& options) {
  return options;
}

template <typename S>
cudaError_t backward_as(WithScalars<BackwardParams> p, cudaStream_t stream) {
  const bool at_sample = p.grad_kl.data && p.gaussians.options.at_sample;
  const bool sampled = at_sample || (p.grad_z.data && p.grad_raw.data);
  CallShape call;
  call.is_default = has_default_options(p) && !p.eps.data && !p.grad_eps.data && !at_sample;
  call.has_channels_last = !at_sample;
  call.has_rows = p.grad_kl.data;
  call.has_misaligned_rows =
      p.space.cols == 1 && p.grad_kl.stride != 0 && !is_aligned(p.grad_kl.data, 16);
  const GradSource source = grad_source_of(p.space, p.grad_kl);
  call.has_all_operands = sampled && p.grad_kl.data && p.grad_mu.data &&
                          (kContiguousServesRows<S> || source == GradSource::kOne);
  call.draws_noise = sampled && !p.eps.data;
  call.samples = p.gaussians.samples;
  merge_tiles(p.space);
  const KernelChoice choice = select_kernel<S>(p.space, operands_of(p), call);
  set_noise_strides(p.space, p.eps);
  return with_options<S>(choice, p, at_sample, [&](auto access, const auto& given) {
    const auto options = without_clip(given);
    using Options = std::decay_t<decltype(options)>;
    return launch(backward_kernel<S, access, Options>, p.space.tiles, stream, p, options, source,
                  choice.has_fast_path);
  });
}

}  // namespace

int backward(const WithScalars<BackwardParams>& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return backward_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace vae_fused::cuda
