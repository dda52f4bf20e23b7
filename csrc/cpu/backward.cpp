// The backward CPU kernel: a task per tile, and for a tile load -> noise -> arithmetic -> store on
// dense buffers that stay in the nearest caches (7 x 8 KiB in float), so that every loop is a
// plain vectorisable one. Cost: one pass over the tensors, nothing tensor-sized in between.
#include "cpu/dispatch.h"
#include "cpu/gaussians.h"

namespace vae_fused::cpu {
namespace {

// grad_kl of a tile's elements, scaled: `add(j, grad)` for each. Where a row is an element, one
// loop over the tile, as in sum_rows.
template <typename T, typename Add>
VAE_FUSED_HD void for_each_grad_kl(const BackwardParams& p, const Tile& tile, const Add& add) {
  const T* const grad_kl = static_cast<const T*>(p.grad_kl) + tile.row * p.grad_kl_stride;
  const T scale = static_cast<T>(p.kl_scale);
  if (p.space.cols == 1 && p.grad_kl_stride == 1) {
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < tile.n; ++j) add(j, scale * grad_kl[j]);
    return;
  }
  const int cols = tile.n / tile.rows;
  for (int r = 0; r < tile.rows; ++r) {
    const T gk = scale * grad_kl[r * p.grad_kl_stride];
    VAE_FUSED_INDEPENDENT
    for (int j = r * cols; j < (r + 1) * cols; ++j) add(j, gk);
  }
}

template <typename S, typename T>
VAE_FUSED_HD void backward_tile(const BackwardParams& p, const math::Plain<T>& f, const Key& key,
                                int64_t t) {
  alignas(64) T x_buffer[kTile], sigma[kTile], variance[kTile], gz_buffer[kTile], scratch[kTile];
  alignas(64) T gmu_buffer[kTile], gx_buffer[kTile];
  const Tile tile = tile_at(p.space, t);
  const int n = tile.n;
  const T* const x = load<S>(p.space, p.of.raw, tile.begin, n, x_buffer);
  for (int j = 0; j < n; ++j) {
    const math::ExpPair<T> pair = math::exponentials(x[j]);
    sigma[j] = pair.e;
    variance[j] = pair.square;
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
  T* const gx = p.grad_raw.data ? target<S>(p.grad_raw, tile.begin, gx_buffer) : gx_buffer;
  if (p.grad_z.data && p.grad_raw.data) {
    const T* const eps = load_noise<S>(p.space, p.eps, key, 0, tile.begin, n, scratch);
    for (int j = 0; j < n; ++j) {
      gx[j] = math::sample_adjoint(f, gz[j] * eps[j], T(0.5) * sigma[j]);
    }
  } else {
    for (int j = 0; j < n; ++j) gx[j] = 0;
  }
  if (p.grad_kl) {
    const T* const mu = load<S>(p.space, p.of.mu, tile.begin, n, scratch);  // the noise is spent
    for_each_grad_kl<T>(p, tile, [&](int j, T gk) {
      const auto adjoint = math::kl_adjoint(f, false, {mu[j], x[j], variance[j]}, T(1), gk);
      gmu[j] = gz[j] + adjoint.mu;
      gx[j] += adjoint.x;
    });
  } else {
    for (int j = 0; j < n; ++j) gmu[j] = gz[j];
  }
  if (p.grad_mu.data) store<S>(p.space, p.grad_mu, tile.begin, n, gmu);
  if (p.grad_raw.data) store<S>(p.space, p.grad_raw, tile.begin, n, gx);
}

template <typename S, typename T>
VAE_FUSED_HD void backward_tile(const BackwardParams& p, math::Family<T> f, const Key& key,
                                int64_t t) {
  // The gradients gather in the order of writing: of z, summed over the samples; of z eps,
  // likewise, which becomes that of the raw scale; of the prior.
  alignas(64) T gmu[kTile], graw[kTile], gmean[kTile], gprior[kTile];
  alignas(64) T gz_buffer[kTile], scratch[kTile];
  GaussianTile<S, true> gaussians;
  const Tile tile = tile_at(p.space, t);
  const int n = tile.n;
  gaussians.load(p.space, p.of, f, tile, p.grad_kl);
  for (int j = 0; j < n; ++j) gmu[j] = graw[j] = gmean[j] = gprior[j] = 0;

  for (int64_t s = 0; p.grad_z.data && s < p.of.samples; ++s) {
    const T* const gz = load<S>(p.space, of_sample<S>(p.grad_z, s), tile.begin, n, gz_buffer);
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) gmu[j] += gz[j];
    if (p.grad_eps.data) {
      const Operand operand = of_sample<S>(p.grad_eps, s);
      T* const geps = target<S>(operand, tile.begin, scratch);
      VAE_FUSED_INDEPENDENT
      for (int j = 0; j < n; ++j) {
        geps[j] = f.temperature * gz[j] * gaussians.posterior(j).scale.sigma;
      }
      gaussians.mask(geps, n);
      store<S>(p.space, operand, tile.begin, n, geps);
    }
    if (!p.grad_raw.data) continue;
    const T* const eps = load_noise<S>(p.space, p.eps, key, s, tile.begin, n, scratch);
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) graw[j] += gz[j] * eps[j];
  }
  if (p.grad_z.data && p.grad_raw.data) {
    for (int j = 0; j < n; ++j) {
      graw[j] = math::sample_adjoint(f, graw[j], gaussians.posterior(j).scale.dsigma);
    }
  }
  if (p.grad_kl) {
    math::with_flag(f.linear, [&](auto linear) {
      for_each_grad_kl<T>(p, tile, [&](int j, T gk) {
        const math::Posterior<T> q = gaussians.posterior(j);
        const math::Prior<T> prior = gaussians.prior(j);
        const auto adjoint = math::kl_adjoint(f, decltype(linear)::value,
                                              math::relative(f, q, prior), prior.precision, gk);
        gmu[j] += adjoint.mu;
        graw[j] += math::chain(adjoint.x, q.scale.dx);
        gmean[j] = adjoint.mean;
        gprior[j] = math::chain(adjoint.prior_x, prior.dx);
      });
    });
  }
  for (int j = 0; j < n; ++j) gmu[j] *= gaussians.posterior(j).dmu;

  const auto write = [&](const Operand& operand, T* values) {
    if (!operand.data) return;
    gaussians.mask(values, n);
    copy_out<S>(p.space, operand, tile.begin, n, values);
  };
  write(p.grad_mu, gmu);
  write(p.grad_raw, graw);
  write(p.grad_prior_mean, gmean);
  write(p.grad_prior_raw, gprior);
}

VAE_FUSED_TASKS(BackwardParams, backward_tile)

}  // namespace

void backward(const BackwardParams& params, ParallelFor parallel_for) {
  run(Task<BackwardParams>(params), parallel_for, kBodies);
}

}  // namespace vae_fused::cpu
