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
template <typename T, int C, bool kWhole>
__device__ __forceinline__ void grad_kl_of(const BackwardParams& p, Rows rows, T one,
                                           const Span<kWhole>& part, T (&gk)[C]) {
  const T* const grad_kl = static_cast<const T*>(p.grad_kl);
  const T kl_scale = static_cast<T>(p.kl_scale);
  VAE_FUSED_UNROLL
  for (int j = 0; j < C; ++j) gk[j] = one;
  if (rows == Rows::kElements) {
    const auto pack = load_vector<T, C>(grad_kl + part.e, part);
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) gk[j] = kl_scale * pack.s[j];
  } else if (rows == Rows::kInTile) {
    // The tile's first row, from what needs no register.
    const T* const of_rows = grad_kl + blockIdx.x * p.space.rows_per_tile;
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) {
      const uint32_t at = static_cast<uint32_t>(part.slot - part.begin + j);
      if (part.has(j)) gk[j] = kl_scale * of_rows[row_in_tile(p.space, at)];
    }
  }
}

// Whether the keys of Philox's rounds are kept: see Stream. Where not, some kernel would spill.
template <Access kAccess>
constexpr bool kKeepsKeys = kAccess == Access::kLinear;

// One tile; `one` is the gradient of all its elements' KL, if there is one.
template <typename S, Access kAccess, bool kWhole, class F>
__device__ __forceinline__ void backward_tile(const BackwardParams& p, const F& f,
                                              const Stream<kKeepsKeys<kAccess>>& stream,
                                              const Tile& tile, Rows rows, arithmetic_t<S> one) {
  using T = arithmetic_t<S>;
  constexpr bool kUsual = kAccess == Access::kLinear, kAll = kGeneral<F>;
  constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  constexpr int kGradZ = kGaussianSlots<F>, kGradMu = kGradZ + 1, kGradRaw = kGradZ + 2,
                kGradEps = kGradZ + 3, kGradMean = kGradZ + 4, kGradPriorRaw = kGradZ + 5,
                kOffsets = kAll ? kGradZ + 6 : kGradZ + 4;
  const bool used = kUsual || p.grad_z.data, with_kl = kUsual || rows != Rows::kNone;
  const bool wants_mu = kUsual || p.grad_mu.data, wants_raw = kUsual || p.grad_raw.data;
  const bool wants_eps = !kUsual && p.grad_eps.data, given = !kUsual && p.eps.data;
  const bool needs_mu = with_kl || f.mu_soft_clamp != T(0);
  for (auto span = first_span<N, kWhole>(tile); span.slot < span.end; span = span + kThreads * N) {
    const int64_t* strides[kOffsets];
    gaussian_strides<F>(p, strides);
    strides[kGradZ] = p.grad_z.stride;
    strides[kGradMu] = p.grad_mu.stride;
    strides[kGradRaw] = p.grad_raw.stride;
    strides[kGradEps] = p.grad_eps.stride;
    if constexpr (kAll) {
      strides[kGradMean] = p.grad_prior_mean.stride;
      strides[kGradPriorRaw] = p.grad_prior_raw.stride;
    }
    int64_t at[kOffsets];
    locate<kAccess>(p.space, strides, span.e, at);
    GaussianStep<S, kAccess, F> step;
    step.load(p.space, p.of, at, span, needs_mu, with_kl);
    Pack<S, N> gz_pack{}, eps_pack{}, mean_pack{}, prior_pack{};
    if (used) gz_pack = load<S, kAccess, kAll>(p.space, p.grad_z, at[kGradZ], span);
    if (used && given) eps_pack = load<S, kAccess, kAll>(p.space, p.eps, at[kEps], span);
    VAE_FUSED_UNROLL
    for (int b = 0; b < N / C; ++b) {
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      step.compute(p.of, f, b, with_kl, q, prior);
      const int64_t first = at[kNoise] + b * chunk_stride<S, kAccess>(p.space);
      T gz[C], eps[C], graw[C];
      widen<kAccess, C>(gz_pack, b, gz);
      if (given) {
        widen<kAccess, C>(eps_pack, b, eps);
      } else if (used && wants_raw) {
        stream.template normals<S>(first, eps);
      } else {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) eps[j] = 0;
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) graw[j] = gz[j] * eps[j];
      if (wants_eps) {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          eps[j] = f.temperature * gz[j] * q[j].scale.sigma;
          if (kAll && !step.counts(p.of, span, b, j)) eps[j] = 0;
        }
        narrow<kAccess, C>(eps, b, eps_pack);
      }
      for (int64_t s = 1; kAll && used && s < p.of.samples; ++s) {
        T further[C];
        widen<kAccess, C>(load_chunk<S, kAccess>(p.space, p.grad_z, at[kGradZ], s, b, span), 0, further);
        if (given) {
          widen<kAccess, C>(load_chunk<S, kAccess>(p.space, p.eps, at[kEps], s, b, span), 0, eps);
        } else if (wants_raw) {
          stream.template normals<S>(first + s * (p.space.rows * p.space.cols), eps);
        }
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          gz[j] += further[j];
          graw[j] += further[j] * eps[j];
          eps[j] = f.temperature * further[j] * q[j].scale.sigma;
          if (!step.counts(p.of, span, b, j)) eps[j] = 0;
        }
        if (!wants_eps) continue;
        Pack<S, C> pack;
        narrow<kAccess, C>(eps, 0, pack);
        store_chunk<S, kAccess>(p.grad_eps, at[kGradEps], s, b, span, pack);
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        graw[j] = used ? math::sample_adjoint(f, graw[j], q[j].scale.dsigma) : T(0);
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
          if (kAll && !step.counts(p.of, span, b, j)) gmean[j] = gprior[j] = 0;
        }
        if constexpr (kAll) {
          narrow<kAccess, C>(gmean, b, mean_pack);
          narrow<kAccess, C>(gprior, b, prior_pack);
        }
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        gz[j] *= q[j].dmu;
        graw[j] = math::halved(f, graw[j]);
        if (q[j].beyond) graw[j] = 0;
        if (kAll && !step.counts(p.of, span, b, j)) gz[j] = graw[j] = 0;
      }
      narrow<kAccess, C>(gz, b, gz_pack);  // in place: registers are scarce
      narrow<kAccess, C>(graw, b, step.raw);
    }
    if (wants_mu) store<S, kAccess>(p.space, p.grad_mu, at[kGradMu], span, gz_pack);
    if (wants_raw) store<S, kAccess>(p.space, p.grad_raw, at[kGradRaw], span, step.raw);
    if (wants_eps) store<S, kAccess>(p.space, p.grad_eps, at[kGradEps], span, eps_pack);
    if constexpr (kAll) {
      if (p.grad_prior_mean.data) {
        store<S, kAccess>(p.space, p.grad_prior_mean, at[kGradMean], span, mean_pack);
      }
      if (p.grad_prior_raw.data) {
        store<S, kAccess>(p.space, p.grad_prior_raw, at[kGradPriorRaw], span, prior_pack);
      }
    }
  }
}

template <typename S, Access kAccess, class F>
__global__ void __launch_bounds__(kThreads, kBlocks<S, kAccess, F>)
    backward_kernel(const __grid_constant__ BackwardParams p, const __grid_constant__ F f,
                    const __grid_constant__ Rows rows) {
  using T = arithmetic_t<S>;
  const Stream<kKeepsKeys<kAccess>> stream(resolve(p.key));
  const Tile tile = tile_at(p.space, blockIdx.x);
  T one = 0;
  if (rows == Rows::kOne) {
    const T* const grad_kl = static_cast<const T*>(p.grad_kl);
    one = static_cast<T>(p.kl_scale) * grad_kl[tile.row * p.grad_kl_stride];
  }
  if (kHasWhole<S, kAccess> && is_whole<kStep<S, kAccess>>(tile)) {
    backward_tile<S, kAccess, true>(p, f, stream, tile, rows, one);
  } else {
    backward_tile<S, kAccess, false>(p, f, stream, tile, rows, one);
  }
}

template <typename S>
cudaError_t backward_as(BackwardParams p, cudaStream_t stream) {
  const bool usual = p.grad_z.data && p.grad_kl && p.grad_mu.data && p.grad_raw.data &&
                     !p.eps.data && !p.grad_eps.data;
  const bool needs_noise = p.grad_z.data && p.grad_raw.data && !p.eps.data;
  const Rows rows = rows_of(p);
  const int64_t blocks = merge_tiles(p.space, false);
  const Way way = way_of<S>(p.space, p.of,
                            {{&p.eps, sizeof(S), false, p.eps.step},
                             {&p.grad_z, sizeof(S), false, p.grad_z.step},
                             {&p.grad_mu, sizeof(S), true},
                             {&p.grad_raw, sizeof(S), true},
                             {&p.grad_eps, sizeof(S), true, p.grad_eps.step},
                             {&p.grad_prior_mean, sizeof(S), true},
                             {&p.grad_prior_raw, sizeof(S), true}},
                            p.grad_kl, usual, needs_noise);
  return with_kernels<S>(way, p.of.family, [&](auto access, const auto& family) {
    using F = std::decay_t<decltype(family)>;
    return launch(backward_kernel<S, decltype(access)::value, F>, blocks, stream, p, family, rows);
  });
}

}  // namespace

int backward(const BackwardParams& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return backward_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace vae_fused::cuda
