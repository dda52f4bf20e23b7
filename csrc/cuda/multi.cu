// The kernels of a list of tensors: a block per tile, as in forward.cu and backward.cu, but each
// tile of one of many tensors. Weights of Bayesian layers, say: dozens of small tensors, each of
// which would be a launch of its own.
#include "cuda/gaussians.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tickets.cuh"

namespace vae_fused::cuda {
namespace {

constexpr int kNoTicket = -1;

// The tensor that a tile is of: the last whose first tile is not behind it.
__device__ __forceinline__ const Item& item_of(const MultiParams& p, int64_t t) {
  int low = 0, high = p.items;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.item[middle].first_tile <= t ? low : high) = middle;
  }
  return p.item[low];
}

// What a block has of its tensor: elements [begin, end), in steps of V from a thread's first.
template <typename S>
struct Piece {
  static constexpr int V = 16 / sizeof(S), C = kChunk<S, Access::kStrided>;
  int64_t begin, end;
  bool aligned;

  __device__ __forceinline__ Piece(const Item& item, int64_t t)
      : begin((t - item.first_tile) * kTile),
        end(begin + kTile < item.n ? begin + kTile : item.n),
        aligned(true) {
    const void* const all[] = {item.mu, item.raw, item.z, item.grad_z, item.grad_mu, item.grad_raw};
    VAE_FUSED_UNROLL
    for (int k = 0; k < 6; ++k) aligned &= reinterpret_cast<uintptr_t>(all[k]) % 16 == 0;
  }

  // Elements beyond the end are 0, and not written.
  __device__ __forceinline__ Pack<S, V> load(const void* data, int64_t e) const {
    const S* const from = static_cast<const S*>(data) + e;
    if (aligned && e + V <= end) return *reinterpret_cast<const Pack<S, V>*>(from);
    Pack<S, V> pack;
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) pack.s[j] = e + j < end ? from[j] : S{};
    return pack;
  }
  __device__ __forceinline__ void store(void* data, int64_t e, const Pack<S, V>& pack) const {
    S* const to = static_cast<S*>(data) + e;
    if (aligned && e + V <= end) return store_whole(to, pack);
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) {
      if (e + j < end) to[j] = pack.s[j];
    }
  }
};

template <typename S>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 1 : 2)
    forward_multi_kernel(const __grid_constant__ MultiParams p,
                         const __grid_constant__ math::Family<arithmetic_t<S>> f, int ticket) {
  using T = arithmetic_t<S>;
  constexpr int V = Piece<S>::V, C = Piece<S>::C;
  const Key key = resolve(p.key);
  if (p.key_out && blockIdx.x == 0 && threadIdx.x == 0) {
    p.key_out[0] = key.seed;
    p.key_out[1] = key.offset;
  }
  const Item& item = item_of(p, blockIdx.x);
  const Piece<S> piece(item, blockIdx.x);
  T sum = 0;
  for (int64_t e = piece.begin + threadIdx.x * V; e < piece.end; e += kThreads * V) {
    auto mu_pack = piece.load(item.mu, e);
    const auto raw_pack = piece.load(item.raw, e);
    VAE_FUSED_UNROLL
    for (int b = 0; b < V / C; ++b) {
      T mu[C], raw[C], z[C];
      widen<C>(mu_pack, b, mu);
      widen<C>(raw_pack, b, raw);
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      math::posterior(f, mu, raw, q);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) mu[j] = f.prior_mean;
      math::prior(f, false, mu, raw, prior);
      math::normals(math::philox(key.seed, key.offset + item.first_block + (e / C + b)), z);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        z[j] = math::sample(f, q[j].mu, q[j].scale.sigma, z[j]);
        const T kl = math::kl(f, f.linear, math::relative(f, q[j], prior[j]));
        if (e + b * C + j < piece.end) sum += kl;
      }
      narrow<C>(z, b, mu_pack);
    }
    piece.store(item.z, e, mu_pack);
  }
  const double total = block_sum(static_cast<double>(sum));
  if (threadIdx.x == 0) p.partials[blockIdx.x] = item.weight * total;
  if (ticket == kNoTicket || !last_block(ticket)) return;
  const double all = block_sum(sum_parts(p.partials, p.tiles, threadIdx.x, kThreads));
  if (threadIdx.x == 0) *static_cast<T*>(p.kl) = static_cast<T>(all);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_multi_kernel(const double* partials, int64_t tiles, T* kl) {
  const double all = block_sum(sum_parts(partials, tiles, threadIdx.x, kThreads));
  if (threadIdx.x == 0) *kl = static_cast<T>(all);
}

template <typename S>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 1 : 2)
    backward_multi_kernel(const __grid_constant__ MultiParams p,
                          const __grid_constant__ math::Family<arithmetic_t<S>> f) {
  using T = arithmetic_t<S>;
  constexpr int V = Piece<S>::V, C = Piece<S>::C;
  const Key key = resolve(p.key);
  const Item& item = item_of(p, blockIdx.x);
  const Piece<S> piece(item, blockIdx.x);
  const T gk = p.grad_kl ? static_cast<T>(item.weight) * *static_cast<const T*>(p.grad_kl) : T(0);
  for (int64_t e = piece.begin + threadIdx.x * V; e < piece.end; e += kThreads * V) {
    auto mu_pack = piece.load(item.mu, e);
    auto raw_pack = piece.load(item.raw, e);
    Pack<S, V> gz_pack{};
    if (item.grad_z) gz_pack = piece.load(item.grad_z, e);
    VAE_FUSED_UNROLL
    for (int b = 0; b < V / C; ++b) {
      T mu[C], raw[C], gz[C], eps[C];
      widen<C>(mu_pack, b, mu);
      widen<C>(raw_pack, b, raw);
      widen<C>(gz_pack, b, gz);
      math::Posterior<T> q[C];
      math::Prior<T> prior[C];
      math::posterior(f, mu, raw, q);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) mu[j] = f.prior_mean;
      math::prior(f, false, mu, raw, prior);
      math::normals(math::philox(key.seed, key.offset + item.first_block + (e / C + b)), eps);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        raw[j] = item.grad_z ? math::sample_adjoint(f, gz[j] * eps[j], q[j].scale.dsigma) : T(0);
        if (p.grad_kl) {
          const auto adjoint = math::kl_adjoint(f, f.linear, math::relative(f, q[j], prior[j]),
                                                prior[j].precision, gk);
          gz[j] += adjoint.mu;
          raw[j] += math::chain(adjoint.x, q[j].scale.dx);
        }
        gz[j] *= q[j].dmu;
      }
      narrow<C>(gz, b, mu_pack);
      narrow<C>(raw, b, raw_pack);
    }
    if (item.grad_mu) piece.store(item.grad_mu, e, mu_pack);
    if (item.grad_raw) piece.store(item.grad_raw, e, raw_pack);
  }
}

template <typename S>
cudaError_t forward_multi_as(const MultiParams& p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  int ticket = kNoTicket;
  cudaError_t error = ticket_slot(stream, &ticket);
  if (error != cudaSuccess) return error;
  const auto family = math::narrowed<T>(p.family);
  error = launch(forward_multi_kernel<S>, p.tiles, stream, p, family, ticket);
  if (error != cudaSuccess || ticket != kNoTicket) return error;
  return launch(combine_multi_kernel<T>, 1, stream, p.partials, p.tiles, static_cast<T*>(p.kl));
}

template <typename S>
cudaError_t backward_multi_as(const MultiParams& p, cudaStream_t stream) {
  const auto family = math::narrowed<arithmetic_t<S>>(p.family);
  return launch(backward_multi_kernel<S>, p.tiles, stream, p, family);
}

}  // namespace

int forward_multi(const MultiParams& params, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (params.dtype) {
    case DType::kFloat32:
      return forward_multi_as<float>(params, stream);
    case DType::kFloat64:
      return forward_multi_as<double>(params, stream);
    case DType::kFloat16:
      return forward_multi_as<math::Half>(params, stream);
    default:
      return forward_multi_as<math::BFloat16>(params, stream);
  }
}

int backward_multi(const MultiParams& params, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (params.dtype) {
    case DType::kFloat32:
      return backward_multi_as<float>(params, stream);
    case DType::kFloat64:
      return backward_multi_as<double>(params, stream);
    case DType::kFloat16:
      return backward_multi_as<math::Half>(params, stream);
    default:
      return backward_multi_as<math::BFloat16>(params, stream);
  }
}

}  // namespace vae_fused::cuda
