// The backward CPU kernel: a task per tile, and for a tile load -> noise -> arithmetic -> store on
// dense buffers that stay in the nearest caches (7 x 8 KiB in float), so that every loop is a
// plain vectorisable one. Cost: one pass over the tensors, nothing tensor-sized in between.
#include "cpu/dispatch.h"
#include "math/gaussian.h"

namespace vae_fused::cpu {
namespace {

template <typename S>
VAE_FUSED_HD void backward_tile(const BackwardParams& p, const Key& key, int64_t t) {
  using T = arithmetic_t<S>;
  alignas(64) T x_buffer[kTile], sigma[kTile], variance[kTile], gz_buffer[kTile], scratch[kTile];
  alignas(64) T gmu_buffer[kTile], gx_buffer[kTile];
  const Tile tile = tile_at(p.space, t);
  const int n = tile.n;
  const T* const x = load<S>(p.space, p.logvar, tile.begin, n, x_buffer);
  for (int j = 0; j < n; ++j) {
    const math::Scale<T> scale = math::scale_of(x[j]);
    sigma[j] = scale.sigma;
    variance[j] = scale.variance;
  }

  const T* gz = gz_buffer;
  if (p.grad_z.data) {
    gz = load<S>(p.space, p.grad_z, tile.begin, n, gz_buffer);
  } else {
    for (int j = 0; j < n; ++j) gz_buffer[j] = 0;
  }
  if (p.grad_eps.data) {
    T* const geps = target<S>(p.grad_eps, tile.begin, scratch);
    for (int j = 0; j < n; ++j) geps[j] = gz[j] * sigma[j];
    store<S>(p.space, p.grad_eps, tile.begin, n, geps);
  }
  T* const gmu = p.grad_mu.data ? target<S>(p.grad_mu, tile.begin, gmu_buffer) : gmu_buffer;
  T* const gx = p.grad_logvar.data ? target<S>(p.grad_logvar, tile.begin, gx_buffer) : gx_buffer;
  if (p.grad_z.data && p.grad_logvar.data) {
    const T* const eps = load_noise<S>(p.space, p.eps, key, tile.begin, n, scratch);
    for (int j = 0; j < n; ++j) gx[j] = math::sample_adjoint(gz[j], sigma[j], eps[j]);
  } else {
    for (int j = 0; j < n; ++j) gx[j] = 0;
  }
  if (p.grad_kl) {
    const T* const mu = load<S>(p.space, p.mu, tile.begin, n, scratch);  // the noise is spent
    const T* const grad_kl = static_cast<const T*>(p.grad_kl) + tile.row * p.grad_kl_stride;
    const T scale = static_cast<T>(p.kl_scale);
    const auto add = [&](int j, T gk) {
      gmu[j] = gz[j] + gk * mu[j];
      gx[j] += math::kl_adjoint(gk, x[j], variance[j]);
    };
    if (p.space.cols == 1 && p.grad_kl_stride == 1) {  // one loop over the tile, as in forward_tile
      for (int j = 0; j < n; ++j) add(j, scale * grad_kl[j]);
    } else {
      const int cols = n / tile.rows;
      for (int r = 0; r < tile.rows; ++r) {
        const T gk = scale * grad_kl[r * p.grad_kl_stride];
        for (int j = r * cols; j < (r + 1) * cols; ++j) add(j, gk);
      }
    }
  } else {
    for (int j = 0; j < n; ++j) gmu[j] = gz[j];
  }
  if (p.grad_mu.data) store<S>(p.space, p.grad_mu, tile.begin, n, gmu);
  if (p.grad_logvar.data) store<S>(p.space, p.grad_logvar, tile.begin, n, gx);
}

VAE_FUSED_TASKS(BackwardParams, backward_tile)

}  // namespace

void backward(const BackwardParams& params, ParallelFor parallel_for) {
  Task<BackwardParams> task{params, resolve(params.key)};
  parallel_for(params.space.tiles, kGrain, task.body(kBodies), &task);
}

}  // namespace vae_fused::cpu
