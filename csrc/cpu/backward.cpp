// The backward CPU kernel: a task per tile, and for a tile load -> noise -> arithmetic -> store on
// dense buffers that stay in the L1 cache (5 x 8 KiB in float), so that every loop is a plain
// vectorisable one. Cost: one pass over the tensors, nothing tensor-sized in between.
#include "cpu/dispatch.h"
#include "math/gaussian.h"

namespace vae_fused::cpu {
namespace {

template <typename S>
VAE_FUSED_HD void backward_tile(const BackwardParams& p, const Key& key, int64_t t) {
  using T = arithmetic_t<S>;
  alignas(64) T x[kTile], sigma[kTile], gz[kTile], noise[kTile], gx[kTile];
  const Tile tile = tile_at(p.space, t);
  const int n = tile.n;
  const bool needs_noise = p.grad_z.data && p.grad_logvar.data;
  load<S>(p.space, p.logvar, tile.begin, n, x);
  for (int j = 0; j < n; ++j) sigma[j] = math::sigma_of(x[j]);
  if (p.grad_z.data) {
    load<S>(p.space, p.grad_z, tile.begin, n, gz);
  } else {
    for (int j = 0; j < n; ++j) gz[j] = 0;
  }
  if (p.grad_eps.data) {
    for (int j = 0; j < n; ++j) gx[j] = gz[j] * sigma[j];
    store<S>(p.space, p.grad_eps, tile.begin, n, gx);
  }
  if (needs_noise) {
    load_noise<S>(p.space, p.eps, key, tile.begin, n, noise);
    for (int j = 0; j < n; ++j) gx[j] = math::sample_adjoint_2x(gz[j], sigma[j], noise[j]);
  } else {
    for (int j = 0; j < n; ++j) gx[j] = 0;
  }
  if (p.grad_kl) {
    T* const mu = noise;  // the noise is spent
    load<S>(p.space, p.mu, tile.begin, n, mu);
    const T* const grad_kl = static_cast<const T*>(p.grad_kl) + tile.row * p.grad_kl_stride;
    const T scale = static_cast<T>(p.kl_scale);
    if (p.space.cols == 1 && p.grad_kl_stride == 1) {  // as in forward_tile
      for (int j = 0; j < n; ++j) {
        const T gk = scale * grad_kl[j];
        gz[j] += gk * mu[j];
        gx[j] += math::kl_adjoint_2x(gk, x[j], sigma[j]);
      }
    } else {
      const int cols = n / tile.rows;
      for (int r = 0; r < tile.rows; ++r) {
        const T gk = scale * grad_kl[r * p.grad_kl_stride];
        for (int j = r * cols; j < (r + 1) * cols; ++j) {
          gz[j] += gk * mu[j];
          gx[j] += math::kl_adjoint_2x(gk, x[j], sigma[j]);
        }
      }
    }
  }
  if (p.grad_mu.data) store<S>(p.space, p.grad_mu, tile.begin, n, gz);
  if (p.grad_logvar.data) {
    for (int j = 0; j < n; ++j) gx[j] *= T(0.5);
    store<S>(p.space, p.grad_logvar, tile.begin, n, gx);
  }
}

VAE_FUSED_TASKS(BackwardParams, backward_tile)

}  // namespace

void backward(const BackwardParams& params, ParallelFor parallel_for) {
  Task<BackwardParams> task{params, resolve(params.key)};
  parallel_for(params.space.tiles, kGrain, kBodies[static_cast<int>(params.dtype)], &task);
}

}  // namespace vae_fused::cpu
