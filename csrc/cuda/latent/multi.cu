// The kernels for a list of tensors. Each thread block computes a tile, and each tile belongs to
// one of many tensors. For example, the weights of Bayesian layers are dozens of small tensors,
// each of which would otherwise need a separate launch.
#include "cuda/latent/gaussians.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tickets.cuh"
#include "params/latent_multi.h"

namespace vae_fused::cuda {
namespace {

// Returns the tensor that contains tile t: the last tensor whose first tile is not after t.
__device__ __forceinline__ const Item& item_of(const MultiParams& p, int64_t t) {
  int low = 0, high = p.items;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.item[middle].first_tile <= t ? low : high) = middle;
  }
  return p.item[low];
}

// The part of a tensor that a thread block computes. It is accessed in vectors if all tensors of
// the item are aligned.
template <typename S>
struct Piece {
  using T = arithmetic_t<S>;
  static constexpr int V = kVector<S, Access::kStrided>, C = kChunk<S, Access::kStrided>;
  const Item& item;
  Noise<math::Seed> noise;  // its counter starts at the tensor's first block
  Tile tile;
  bool aligned = true;

  __device__ __forceinline__ Piece(const MultiParams& p, const Key& list_key, int64_t t)
      : item(item_of(p, t)),
        noise{math::Seed(list_key.seed), {list_key.offset + item.first_block}} {
    const int64_t begin = (t - item.first_tile) * p.tile, rest = item.n - begin;
    tile = {begin, 0, static_cast<int>(rest < p.tile ? rest : p.tile), 1};
    const void* const all[] = {item.mu, item.raw,    item.prior_mean, item.prior_raw,
                               item.z,  item.grad_z, item.grad_mu,    item.grad_raw};
    VAE_FUSED_UNROLL
    for (const void* data : all) aligned &= reinterpret_cast<uintptr_t>(data) % 16 == 0;
  }

  // The inputs of a step. The packs of a prior without tensors are not loaded.
  struct Step {
    Pack<S, V> mu, raw, prior_mean, prior_raw;
  };
  __device__ __forceinline__ Step load_step(const Span<>& span) const {
    Step step{};
    step.mu = load(item.mu, span);
    step.raw = load(item.raw, span);
    if (item.prior_mean) step.prior_mean = load(item.prior_mean, span);
    if (item.prior_raw) step.prior_raw = load(item.prior_raw, span);
    return step;
  }

  __device__ __forceinline__ Pack<S, V> load(const void* data, const Span<>& span) const {
    Pack<S, V> pack;
    load_vector(static_cast<const S*>(data) + span.element(), span, pack, aligned);
    return pack;
  }
  __device__ __forceinline__ void store(void* data, const Span<>& span,
                                        const Pack<S, V>& pack) const {
    store_vector<S, V>(static_cast<S*>(data) + span.element(), span, pack, aligned);
  }

  // Computes the Gaussians of chunk b of a step, and its normals if `has_noise`.
  __device__ __forceinline__ void compute(const math::LatentOptions<T>& options, const Span<>& span,
                                          int b, const Step& step, bool has_noise,
                                          math::Posterior<T> (&q)[C], math::Prior<T> (&prior)[C],
                                          T (&eps)[C]) const {
    T mu[C], raw[C];
    widen<Access::kStrided, false, C>(step.mu, b, mu);
    widen<Access::kStrided, false, C>(step.raw, b, raw);
    math::posterior<math::kCoarse<S>>(options, mu, raw, q);
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) mu[j] = static_cast<T>(item.prior.mean);
    if (item.prior_mean) widen<Access::kStrided, false, C>(step.prior_mean, b, mu);
    if (item.prior_raw) {
      widen<Access::kStrided, false, C>(step.prior_raw, b, raw);
      math::prior(options, true, mu, raw, prior);
    } else {
      const T precision = static_cast<T>(item.prior.precision), x = static_cast<T>(item.prior.x);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) prior[j] = {mu[j], precision, x, T(0)};
    }
    if (has_noise) {
      noise.template normals<S>(span.element() + b * C, eps);
    } else {
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) eps[j] = T(0);
    }
  }
};

// One thread block sums the KL of all tiles.
template <typename T>
__device__ __forceinline__ void combine(const double* partials, int64_t tiles, T* kl) {
  const double all = block_sum(sum_parts(partials, tiles, threadIdx.x, kThreads));
  if (threadIdx.x == 0) *kl = static_cast<T>(all);
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Kernel::kForwardMulti, S>)
    forward_multi_kernel(const __grid_constant__ MultiParams p,
                         const __grid_constant__ OptionsOnDevice<arithmetic_t<S>> options,
                         int ticket) {
  using T = arithmetic_t<S>;
  constexpr int V = Piece<S>::V, C = Piece<S>::C;
  const math::Weights<T> weights = weights_of(options);
  const Key key = resolve(p.key);
  write_key(key, p.key_out);
  const Piece<S> piece(p, key, blockIdx.x);
  const Item& item = piece.item;
  double sum = 0;
  for (Span<> span = first_span<V>(piece.tile); span.slot < span.end; span = span + kThreads * V) {
    auto step = piece.load_step(span);
    T step_sum = 0;
    VAE_FUSED_UNROLL
    for (int b = 0; b < V / C; ++b) {
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      T z[C];
      piece.compute(options, span, b, step, item.z, q, prior, z);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        z[j] = math::sample(weights, q[j].mu, q[j].scale.sigma, z[j]);
        const T kl = math::kl_times_two(weights, weights.is_linear_form,
                                        math::relative(options, q[j], prior[j]));
        if (span.has(b * C + j)) step_sum += kl;
      }
      narrow<Access::kStrided, false, C>(z, b, step.mu);
    }
    if (item.z) piece.store(item.z, span, step.mu);
    sum += static_cast<double>(step_sum);
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) p.partials[blockIdx.x] = 0.5 * item.weight * total;
  if (ticket == kNoTicket || !last_block(ticket)) return;
  combine(p.partials, p.tiles, static_cast<T*>(p.kl));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_multi_kernel(const double* partials, int64_t tiles, T* kl) {
  combine(partials, tiles, kl);
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Kernel::kBackwardMulti, S>)
    backward_multi_kernel(const __grid_constant__ MultiParams p,
                          const __grid_constant__ OptionsOnDevice<arithmetic_t<S>> options) {
  using T = arithmetic_t<S>;
  constexpr int V = Piece<S>::V, C = Piece<S>::C;
  const math::Weights<T> weights = weights_of(options);
  const Piece<S> piece(p, resolve(p.key), blockIdx.x);
  const Item& item = piece.item;
  const T gk = p.grad_kl ? static_cast<T>(item.weight) * *static_cast<const T*>(p.grad_kl) : T(0);
  for (Span<> span = first_span<V>(piece.tile); span.slot < span.end; span = span + kThreads * V) {
    auto step = piece.load_step(span);
    Pack<S, V> gz_pack{};
    if (item.grad_z) gz_pack = piece.load(item.grad_z, span);
    VAE_FUSED_UNROLL
    for (int b = 0; b < V / C; ++b) {
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      T eps[C], gz[C], graw[C];
      piece.compute(options, span, b, step, item.grad_z, q, prior, eps);
      widen<Access::kStrided, false, C>(gz_pack, b, gz);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        graw[j] =
            item.grad_z ? math::sample_adjoint(weights, gz[j] * eps[j], q[j].scale.dsigma) : T(0);
        if (p.grad_kl) {
          const auto adjoint =
              math::kl_adjoint(weights, weights.is_linear_form,
                               math::relative(options, q[j], prior[j]), prior[j].precision, gk);
          gz[j] += adjoint.mu;
          graw[j] += math::chain(adjoint.x, q[j].scale.dx);
        }
        gz[j] *= q[j].dmu;
      }
      narrow<Access::kStrided, false, C>(gz, b, step.mu);
      narrow<Access::kStrided, false, C>(graw, b, step.raw);
    }
    if (item.grad_mu) piece.store(item.grad_mu, span, step.mu);
    if (item.grad_raw) piece.store(item.grad_raw, span, step.raw);
  }
}

// Merges as many tiles into one as for a single tensor with all elements of the list. No tile spans
// two items, so each item adds at most two thread blocks, each with one partial sum.
void merge_tiles(MultiParams& p) {
  p.tile = kTile * tiles_to_merge(p.tiles);
  p.tiles = 0;
  for (int k = 0; k < p.items; ++k) {
    p.item[k].first_tile = p.tiles;
    p.tiles += (p.item[k].n - 1) / p.tile + 1;
  }
}

template <typename S>
cudaError_t forward_multi_as(WithScalars<MultiParams> p, cudaStream_t stream) {
  merge_tiles(p);
  using T = arithmetic_t<S>;
  int ticket = kNoTicket;
  cudaError_t error = ticket_slot(stream, &ticket);
  if (error != cudaSuccess) return error;
  const auto options = options_as<T, false>(p.options, p.scalars);
  error = launch(forward_multi_kernel<S>, p.tiles, stream, p, options, ticket);
  if (error != cudaSuccess || ticket != kNoTicket) return error;
  return launch(combine_multi_kernel<T>, 1, stream, p.partials, p.tiles, static_cast<T*>(p.kl));
}

template <typename S>
cudaError_t backward_multi_as(WithScalars<MultiParams> p, cudaStream_t stream) {
  merge_tiles(p);
  const auto options = options_as<arithmetic_t<S>, false>(p.options, p.scalars);
  return launch(backward_multi_kernel<S>, p.tiles, stream, p, options);
}

}  // namespace

int forward_multi(const WithScalars<MultiParams>& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return forward_multi_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

int backward_multi(const WithScalars<MultiParams>& params, void* stream) {
  return with_storage(params.dtype, [&](auto s) {
    return backward_multi_as<decltype(s)>(params, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace vae_fused::cuda
