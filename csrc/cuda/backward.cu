// The backward CUDA kernel: every gradient in one launch, the noise regenerated from the key.
//
// Bytes per element, float: 12 read (mu, logvar, grad_z), 8 written. No reduction, no barrier.
#include "cuda/tile.cuh"
#include "math/gaussian.h"

namespace vae_fused::cuda {
namespace {

template <typename S, int V>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ BackwardParams p) {
  using T = arithmetic_t<S>;
  const Key key = resolve(p.key);
  const Tile tile = tile_at(p.space, blockIdx.x);
  const T* const grad_kl = static_cast<const T*>(p.grad_kl);
  const T scale = static_cast<T>(p.kl_scale);
  for (int at = threadIdx.x * V; at < tile.n; at += kThreads * V) {
    const int64_t e = tile.begin + at;
    const int n = tile.n - at < V ? tile.n - at : V;
    T x[V], sigma[V], variance[V], gz[V] = {}, gx[V] = {};
    load<V, S>(p.space, p.logvar, e, n, x);
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) {
      const math::Scale<T> scale = math::scale_of(x[j]);
      sigma[j] = scale.sigma;
      variance[j] = scale.variance;
    }
    if (p.grad_z.data) {
      load<V, S>(p.space, p.grad_z, e, n, gz);
      if (p.grad_eps.data) {
        T geps[V];
        VAE_FUSED_UNROLL
        for (int j = 0; j < V; ++j) geps[j] = gz[j] * sigma[j];
        store<V, S>(p.space, p.grad_eps, e, n, geps);
      }
      if (p.grad_logvar.data) {
        T eps[V];
        load_noise<V, S>(p.space, p.eps, key, e, n, eps);
        VAE_FUSED_UNROLL
        for (int j = 0; j < V; ++j) gx[j] = math::sample_adjoint(gz[j], sigma[j], eps[j]);
      }
    }
    if (grad_kl) {
      T mu[V];
      load<V, S>(p.space, p.mu, e, n, mu);
      RowCursor cursor(p.space, at);
      VAE_FUSED_UNROLL
      for (int j = 0; j < V; ++j) {
        if (j < n) {
          const T gk = scale * grad_kl[(tile.row + cursor.row) * p.grad_kl_stride];
          gz[j] += gk * mu[j];
          gx[j] += math::kl_adjoint(gk, x[j], variance[j]);
          cursor.next(p.space);
        }
      }
    }
    if (p.grad_mu.data) store<V, S>(p.space, p.grad_mu, e, n, gz);
    if (p.grad_logvar.data) {
      store<V, S>(p.space, p.grad_logvar, e, n, gx);
    }
  }
}

template <typename S>
cudaError_t backward_as(const BackwardParams& p, cudaStream_t stream) {
  constexpr int v = kVector<S>;
  const bool needs_noise = p.grad_z.data && p.grad_logvar.data && !p.eps.data;
  bool vector = space_vectorises(p.space, needs_noise, v);
  for (const Operand* operand :
       {&p.mu, &p.logvar, &p.eps, &p.grad_z, &p.grad_mu, &p.grad_logvar, &p.grad_eps}) {
    vector = vector && vectorises(p.space, *operand, v, sizeof(S));
  }
  return launch(vector ? backward_kernel<S, v> : backward_kernel<S, 1>, p.space.tiles, stream, p);
}

}  // namespace

int backward(const BackwardParams& params, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (params.dtype) {
    case DType::kFloat32:
      return backward_as<float>(params, stream);
    case DType::kFloat64:
      return backward_as<double>(params, stream);
    case DType::kFloat16:
      return backward_as<math::Half>(params, stream);
    default:
      return backward_as<math::BFloat16>(params, stream);
  }
}

}  // namespace vae_fused::cuda
