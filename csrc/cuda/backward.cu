// The backward CUDA kernel: every gradient in one launch, the noise regenerated from the key.
//
// Bytes per element, float: 12 read (mu, logvar, grad_z), 8 written. No reduction, no barrier.
#include "cuda/gaussians.cuh"

namespace vae_fused::cuda {
namespace {

// The elements of a row have the KL's gradient in common.
enum class Rows {
  kNone,      // the KL was not used
  kOne,       // the same for the whole tile
  kElements,  // a row is an element
  kInTile,    // a tile holds whole rows
};

Rows rows_of(const BackwardParams& p) {
  if (!p.grad_kl) return Rows::kNone;
  if (p.grad_kl_stride == 0 || p.space.tiles_per_row > 1) return Rows::kOne;
  return p.space.cols == 1 ? Rows::kElements : Rows::kInTile;
}

// The gradient of the KL of a chunk's elements, `one` where it is the same for all of a tile.
template <typename T, int C, bool kWhole, class R>
__device__ __forceinline__ void grad_kl_of(const BackwardParams& p, R rows, T one,
                                           const Span<kWhole>& part, T (&gk)[C]) {
  const T* const grad_kl = static_cast<const T*>(p.grad_kl);
  const T kl_scale = static_cast<T>(p.kl_scale);
  VAE_FUSED_UNROLL
  for (int j = 0; j < C; ++j) gk[j] = one;
  if (rows == Rows::kElements) {
    Pack<T, C> pack;
    load_vector(grad_kl + part.e(), part, pack);
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) gk[j] = kl_scale * pack.s[j];
  } else if (rows == Rows::kInTile) {
    // The tile's first row, from what needs no register.
    const T* const of_rows = grad_kl + blockIdx.x * p.space.rows_per_tile;
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      const uint32_t at = static_cast<uint32_t>(part.in_tile() + j);
      if (part.has(j)) gk[j] = kl_scale * of_rows[row_in_tile(p.space, at)];
    }
  }
}

// A step: loaded, then computed and stored. `kUsual`: of a usual tile.
template <typename S, Access kAccess, class F, bool kUsual>
class BackwardStep {
  using T = arithmetic_t<S>;
  static constexpr bool kComplete = kUsual || kAccess == Access::kLinear, kAll = kGeneral<F>;
  static constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  // The slots behind those of the Gaussians; the last three are the general family's.
  enum : int { kGradZ = kGaussianSlots<F>, kGradMu, kGradRaw, kGradEps, kGradMean, kGradPriorRaw };
  static constexpr int kOffsets = 1 + (kAll ? kGradPriorRaw : kGradRaw);

 public:
  template <bool kWhole>
  __device__ __forceinline__ void load(const BackwardParams& p, const F& f, bool with_kl,
                                       const Span<kWhole>& span) {
    const int64_t* strides[kOffsets];
    gaussian_strides<F>(p, strides);
    strides[kGradZ] = p.grad_z.stride;
    strides[kGradMu] = p.grad_mu.stride;
    strides[kGradRaw] = p.grad_raw.stride;
    if constexpr (kAll) {
      strides[kGradEps] = p.grad_eps.stride;
      strides[kGradMean] = p.grad_prior_mean.stride;
      strides[kGradPriorRaw] = p.grad_prior_raw.stride;
    }
    locate<S, kAccess, kUsual>(p.space, strides, span.e(), at_);
    const bool needs_mu = with_kl || f.mu_soft_clamp != T(0);
    gaussians_.load(p.space, p.of, at_, span, needs_mu, with_kl);
    if (used(p)) cuda::load<S, kAccess, kUsual, kAll>(p.space, p.grad_z, at_[kGradZ], span, gz_);
    if (used(p) && given(p)) {
      cuda::load<S, kAccess, kUsual, kAll>(p.space, p.eps, at_[kNoise], span, eps_);
    }
  }

  // `rows` is a value or a constant; `one` the gradient of all the tile's KL, if there is one.
  template <bool kWhole, class R, class Keys>
  __device__ __forceinline__ void finish(const BackwardParams& p, const F& f,
                                         const Noise<Keys>& noise, const Span<kWhole>& span, R rows,
                                         T one) {
    const bool with_kl = kComplete || rows != Rows::kNone;
    VAE_FUSED_UNROLL
    for (int b = 0; b < N / C; ++b) {
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      gaussians_.template compute<kWhole>(p.of, f, b, with_kl, q, prior);
      T gz[C], graw[C];
      of_samples(p, f, noise, span, b, q, gz, graw);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        graw[j] = used(p) ? math::sample_adjoint(f, graw[j], q[j].scale.dsigma) : T(0);
      }
      if (with_kl) {
        T gk[C], gmean[C], gprior[C];
        grad_kl_of(p, rows, one, span + b * C, gk);
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          const auto adjoint = math::kl_adjoint(f, f.linear, math::relative(f, q[j], prior[j]),
                                                prior[j].precision, gk[j]);
          gz[j] += adjoint.mu;
          graw[j] += math::chain(adjoint.x, q[j].scale.dx);
          gmean[j] = adjoint.mean;
          gprior[j] = math::chain(adjoint.prior_x, prior[j].dx);
          if (kAll && !gaussians_.counts(p.of, span, b, j)) gmean[j] = gprior[j] = 0;
        }
        if constexpr (kAll) {
          of_prior_.mean.template set<kWhole>(b, gmean);
          of_prior_.raw.template set<kWhole>(b, gprior);
        }
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        gz[j] *= q[j].dmu;
        graw[j] = math::halved(f, graw[j]);
        if (q[j].beyond) graw[j] = 0;
        if (kAll && !gaussians_.counts(p.of, span, b, j)) gz[j] = graw[j] = 0;
      }
      grad_mu_.template set<kWhole>(b, gz);
      grad_raw_.template set<kWhole>(b, graw);
    }
    store_all(p, span);
  }

 private:
  static __device__ __forceinline__ bool used(const BackwardParams& p) {
    return kComplete || p.grad_z.data;
  }
  static __device__ __forceinline__ bool given(const BackwardParams& p) {
    return kAll && p.eps.data;
  }
  static __device__ __forceinline__ bool wants_mu(const BackwardParams& p) {
    return kComplete || p.grad_mu.data;
  }
  static __device__ __forceinline__ bool wants_raw(const BackwardParams& p) {
    return kComplete || p.grad_raw.data;
  }
  static __device__ __forceinline__ bool wants_eps(const BackwardParams& p) {
    return kAll && p.grad_eps.data;
  }

  // What chunk b has from its samples: the gradient of z, and that times eps.
  template <bool kWhole, class Keys>
  __device__ __forceinline__ void of_samples(const BackwardParams& p, const F& f,
                                             const Noise<Keys>& noise, const Span<kWhole>& span,
                                             int b, const math::Posterior<T> (&q)[C], T (&gz)[C],
                                             T (&graw)[C]) {
    T eps[C];
    widen<kAccess, kWhole, C>(gz_, b, gz);
    if (given(p)) {
      widen<kAccess, kWhole, C>(eps_, b, eps);
    } else if (used(p) && wants_raw(p)) {
      draw<S, kAccess, kUsual>(p.space, noise, span, at_[kNoise], b, eps);
    } else {
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) eps[j] = 0;
    }
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) graw[j] = gz[j] * eps[j];
    if constexpr (kAll) {
      if (wants_eps(p)) {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          eps[j] = f.temperature * gz[j] * q[j].scale.sigma;
          if (!gaussians_.counts(p.of, span, b, j)) eps[j] = 0;
        }
        grad_eps_.template set<kWhole>(b, eps);
      }
      constexpr bool kMany = kAccess != Access::kPatched;  // see way_of
      for (int64_t s = 1; kMany && used(p) && s < p.of.samples; ++s) {
        T further[C];
        Pack<S, C> pack;
        load_chunk<S, kAccess>(p.space, p.grad_z, at_[kGradZ], s, b, span, pack);
        widen<kAccess, kWhole, C>(pack, 0, further);
        if (given(p)) {
          load_chunk<S, kAccess>(p.space, p.eps, at_[kNoise], s, b, span, pack);
          widen<kAccess, kWhole, C>(pack, 0, eps);
        } else if (wants_raw(p)) {
          const int64_t at = at_[kNoise] + s * (p.space.rows * p.space.cols);
          draw<S, kAccess, false>(p.space, noise, span, at, b, eps);
        }
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          gz[j] += further[j];
          graw[j] += further[j] * eps[j];
          eps[j] = f.temperature * further[j] * q[j].scale.sigma;
          if (!gaussians_.counts(p.of, span, b, j)) eps[j] = 0;
        }
        if (!wants_eps(p)) continue;
        narrow<kAccess, kWhole, C>(eps, 0, pack);
        store_chunk<S, kAccess>(p.grad_eps, at_[kGradEps], s, b, span, pack);
      }
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void store_all(const BackwardParams& p, const Span<kWhole>& span) {
    const auto put = [&](const Operand& to, int slot, const Results<S, kAccess>& results) {
      store<S, kAccess, kUsual>(p.space, to, at_[slot], span, results.pack);
    };
    if (wants_mu(p)) put(p.grad_mu, kGradMu, grad_mu_);
    if (wants_raw(p)) put(p.grad_raw, kGradRaw, grad_raw_);
    if constexpr (kAll) {
      if (wants_eps(p)) put(p.grad_eps, kGradEps, grad_eps_);
      if (p.grad_prior_mean.data) put(p.grad_prior_mean, kGradMean, of_prior_.mean);
      if (p.grad_prior_raw.data) put(p.grad_prior_raw, kGradPriorRaw, of_prior_.raw);
    }
  }

  struct None {};
  struct OfPrior {
    Results<S, kAccess> mean, raw;
  };

  int64_t at_[kOffsets];
  GaussianStep<S, kAccess, F, kUsual> gaussians_;
  Pack<S, N> gz_{}, eps_{};
  Results<S, kAccess> grad_mu_, grad_raw_, grad_eps_;
  std::conditional_t<kAll, OfPrior, None> of_prior_;
};

// The steps of a tile from `span` on.
template <typename S, Access kAccess, bool kUsual, bool kWhole, class F, class R>
__device__ __forceinline__ void backward_steps(
    const BackwardParams& p, const F& f,
    const Stream<kKeySource<Pass::kBackward, S, kAccess, F>>& stream, Span<kWhole> span, R rows,
    arithmetic_t<S> one) {
  for (; span.slot < span.end; span = span + kThreads * kStep<S, kAccess>) {
    BackwardStep<S, kAccess, F, kUsual> step;
    step.load(p, f, rows != Rows::kNone, span);
    step.finish(p, f, stream.template for_step<kUsual>(), span, rows, one);
  }
}

template <typename S, Access kAccess, class F>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Pass::kBackward, S, kAccess, F>)
    backward_kernel(const __grid_constant__ BackwardParams p, const __grid_constant__ F f,
                    const __grid_constant__ Rows rows, const __grid_constant__ bool usual) {
  using T = arithmetic_t<S>;
  constexpr bool kUsual = kHasUsual<S, F>;
  constexpr int N = kStep<S, kAccess>;
  constexpr Known<Rows::kOne> one_row;  // of usual tiles
  const Tile tile = tile_of(p.space, blockIdx.x);
  T one = 0;
  if (rows == Rows::kOne) {
    const T* const grad_kl = static_cast<const T*>(p.grad_kl);
    one = static_cast<T>(p.kl_scale) * grad_kl[tile.row * p.grad_kl_stride];
  }
  Stream<kKeySource<Pass::kBackward, S, kAccess, F>> stream(p.key);
  bool is_usual = kUsual && usual && rows == one_row && is_whole<N>(tile);
  if constexpr (kUsual) {
    is_usual = is_usual && try_share_high_word<S, kAccess>(p.space, tile, stream);
  }
  if (!is_usual) {
    const auto begin = first_span<N, kAlwaysWhole<kAccess>>(tile);
    backward_steps<S, kAccess, false>(p, f, stream, begin, rows, one);
  } else if constexpr (kUsual) {
    const auto begin = first_span<N, true>(tile);
    backward_steps<S, kAccess, true>(p, f, stream, begin, one_row, one);
  }
}

template <typename S>
cudaError_t backward_as(BackwardParams p, cudaStream_t stream) {
  const bool sampled = p.grad_z.data && p.grad_raw.data;
  Asked asked;
  asked.rows = p.grad_kl;
  asked.rows_misaligned = p.space.cols == 1 && p.grad_kl_stride != 0 && !aligned(p.grad_kl, 16);
  asked.complete = sampled && p.grad_kl && p.grad_mu.data;
  asked.key_noise = sampled && !p.eps.data;
  asked.noise_tensor = p.eps.data || p.grad_eps.data;
  const Rows rows = rows_of(p);
  merge_tiles(p.space);
  const Way way = way_of<S>(p.space, p.of,
                            {{&p.eps, sizeof(S), false, p.eps.step},
                             {&p.grad_z, sizeof(S), false, p.grad_z.step},
                             {&p.grad_mu, sizeof(S), true},
                             {&p.grad_raw, sizeof(S), true},
                             {&p.grad_eps, sizeof(S), true, p.grad_eps.step},
                             {&p.grad_prior_mean, sizeof(S), true},
                             {&p.grad_prior_raw, sizeof(S), true}},
                            asked);
  take_noise_from(p.space, p.eps);
  return with_kernels<S>(way, p.of.family, [&](auto access, const auto& family) {
    using F = std::decay_t<decltype(family)>;
    return launch(backward_kernel<S, decltype(access)::value, F>, p.space.tiles, stream, p,
                  math::unclipped(family), rows, way.usual);
  });
}

}  // namespace

int backward(const BackwardParams& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return backward_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace vae_fused::cuda
