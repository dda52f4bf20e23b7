// A tile of the backward kernel, for one instruction set: pieces as in forward_tile.h.
#pragma once

#include "cpu/gaussians.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// grad_kl of the elements at .. at + n of a tile, scaled.
template <typename T>
VAE_FUSED_ALONE void load_grad_kl(const BackwardParams& p, const Tile& tile, int at, int n,
                                  T* out) {
  const T* const grad_kl = static_cast<const T*>(p.grad_kl) + tile.row * p.grad_kl_stride;
  const T scale = static_cast<T>(p.kl_scale);
  if (p.space.cols == 1 && p.grad_kl_stride == 1) {
    for (int j = 0; j < n; ++j) out[j] = scale * grad_kl[at + j];
    return;
  }
  const int cols = tile.n / tile.rows;
  for (int r = at / cols, j = 0; j < n; ++r) {
    const T gk = scale * grad_kl[r * p.grad_kl_stride];
    const int end = std::min(n, (r + 1) * cols - at);
    for (; j < end; ++j) out[j] = gk;
  }
}

// Plain: the gradients of mu and x, of what is there of z and the KL.
template <bool sampled, bool with_kl, typename T>
VAE_FUSED_ALONE void adjoint(const T* mu, const T* x, const T* gz, const T* eps, const T* gk,
                             T* gmu, T* gx, int n) {
  const math::Plain<T> f;
  VAE_FUSED_INDEPENDENT
  for (int j = 0; j < n; ++j) {
    const math::ExpPair<T> pair = math::exponentials(x[j]);
    T to_mu = gz[j], to_x = 0;
    if constexpr (sampled) to_x = math::sample_adjoint(f, gz[j] * eps[j], T(0.5) * pair.e);
    if constexpr (with_kl) {
      const auto of_kl = math::kl_adjoint(f, false, {mu[j], x[j], pair.square}, T(1), gk[j]);
      to_mu += of_kl.mu;
      to_x += of_kl.x;
    }
    gmu[j] = to_mu;
    gx[j] = to_x;
  }
}

template <typename T>
VAE_FUSED_ALONE void noise_adjoint(const T* x, const T* gz, T* geps, int n) {
  VAE_FUSED_INDEPENDENT
  for (int j = 0; j < n; ++j) geps[j] = gz[j] * math::exponentials(x[j]).e;
}

template <typename S, typename T>
VAE_FUSED_HD void backward_piece(const BackwardParams& p, const math::Plain<T>&, const Key& key,
                                 const Tile& tile, int at, int n) {
  alignas(64) T mu_buffer[kPiece], x_buffer[kPiece], gz_buffer[kPiece], noise[kPiece], gk[kPiece];
  alignas(64) T gmu_buffer[kPiece], gx_buffer[kPiece];
  const int64_t begin = tile.begin + at;
  const T* const mu = load<S>(p.space, p.of.mu, begin, n, mu_buffer);
  const T* const x = load<S>(p.space, p.of.raw, begin, n, x_buffer);
  const T* gz = gz_buffer;
  if (p.grad_z.data) {
    gz = load<S>(p.space, p.grad_z, begin, n, gz_buffer);
  } else {
    for (int j = 0; j < n; ++j) gz_buffer[j] = 0;
  }
  if (p.grad_eps.data) {
    T* const geps = target<S>(p.grad_eps, begin, noise);
    noise_adjoint(x, gz, geps, n);
    store<S>(p.space, p.grad_eps, begin, n, geps);
  }
  if (p.grad_kl) load_grad_kl(p, tile, at, n, gk);
  T* const gmu = target<S>(p.grad_mu, begin, gmu_buffer);
  T* const gx = target<S>(p.grad_raw, begin, gx_buffer);
  math::with_flag(p.grad_kl, [&](auto with_kl) {
    if (p.grad_z.data && p.grad_raw.data) {
      const T* const eps = load_noise<S>(p.space, p.eps, key, 0, begin, n, noise);
      adjoint<true, decltype(with_kl)::value>(mu, x, gz, eps, gk, gmu, gx, n);
    } else {
      adjoint<false, decltype(with_kl)::value, T>(mu, x, gz, nullptr, gk, gmu, gx, n);
    }
  });
  store<S>(p.space, p.grad_mu, begin, n, gmu);
  store<S>(p.space, p.grad_raw, begin, n, gx);
}

// The gradients gather in the order of writing: of z, summed over the samples; of z eps, likewise,
// which becomes that of the raw scale; of the prior.
template <typename T>
struct Gradients {
  T *mu, *raw, *mean, *prior;
};

template <typename T>
VAE_FUSED_ALONE void add(const T* x, T* to, int n) {
  VAE_FUSED_INDEPENDENT
  for (int j = 0; j < n; ++j) to[j] += x[j];
}

template <typename T>
VAE_FUSED_ALONE void add_product(const T* x, const T* y, T* to, int n) {
  VAE_FUSED_INDEPENDENT
  for (int j = 0; j < n; ++j) to[j] += x[j] * y[j];
}

template <typename T>
VAE_FUSED_ALONE void noise_adjoint(const GaussianPiece<T, true>& gaussians, math::Family<T> f,
                                   const T* gz, T* geps, int n) {
  VAE_FUSED_INDEPENDENT
  for (int j = 0; j < n; ++j) geps[j] = f.temperature * gz[j] * gaussians.posterior(j).scale.sigma;
}

template <typename T>
VAE_FUSED_ALONE void scale_adjoint(const GaussianPiece<T, true>& gaussians, math::Family<T> f,
                                   T* graw, int n) {
  VAE_FUSED_INDEPENDENT
  for (int j = 0; j < n; ++j) {
    graw[j] = math::sample_adjoint(f, graw[j], gaussians.posterior(j).scale.dsigma);
  }
}

template <bool linear, typename T>
VAE_FUSED_ALONE void add_kl_adjoint(const GaussianPiece<T, true>& gaussians, math::Family<T> f,
                                    const T* gk, Gradients<T> g, int n) {
  VAE_FUSED_INDEPENDENT
  for (int j = 0; j < n; ++j) {
    const math::Posterior<T> q = gaussians.posterior(j);
    const math::Prior<T> prior = gaussians.prior(j);
    const auto of_kl =
        math::kl_adjoint(f, linear, math::relative(f, q, prior), prior.precision, gk[j]);
    g.mu[j] += of_kl.mu;
    g.raw[j] += math::chain(of_kl.x, q.scale.dx);
    g.mean[j] = of_kl.mean;
    g.prior[j] = math::chain(of_kl.prior_x, prior.dx);
  }
}

template <typename S, typename T>
VAE_FUSED_HD void backward_piece(const BackwardParams& p, const math::Family<T>& f, const Key& key,
                                 const Tile& tile, int at, int n) {
  alignas(64) T gz_buffer[kPiece], scratch[kPiece], buffers[4][kPiece];
  GaussianPiece<T, true> gaussians;
  const int64_t begin = tile.begin + at;
  gaussians.template load<S>(p.space, p.of, f, begin, n, p.grad_kl);
  const Operand* const operands[] = {&p.grad_mu, &p.grad_raw, &p.grad_prior_mean,
                                     &p.grad_prior_raw};
  T* grads[4];
  for (int k = 0; k < 4; ++k) {
    grads[k] = target<S>(*operands[k], begin, buffers[k]);
    for (int j = 0; j < n; ++j) grads[k][j] = 0;
  }
  const Gradients<T> g = {grads[0], grads[1], grads[2], grads[3]};

  for (int64_t s = 0; p.grad_z.data && s < p.of.samples; ++s) {
    const T* const gz = load<S>(p.space, of_sample<S>(p.grad_z, s), begin, n, gz_buffer);
    add(gz, g.mu, n);
    if (p.grad_eps.data) {
      const Operand operand = of_sample<S>(p.grad_eps, s);
      T* const geps = target<S>(operand, begin, scratch);
      noise_adjoint(gaussians, f, gz, geps, n);
      gaussians.mask(geps, n);
      store<S>(p.space, operand, begin, n, geps);
    }
    if (!p.grad_raw.data) continue;
    const T* const eps = load_noise<S>(p.space, p.eps, key, s, begin, n, scratch);
    add_product(gz, eps, g.raw, n);
  }
  if (p.grad_z.data && p.grad_raw.data) scale_adjoint(gaussians, f, g.raw, n);
  if (p.grad_kl) {
    load_grad_kl(p, tile, at, n, scratch);
    math::with_flag(f.linear, [&](auto linear) {
      add_kl_adjoint<decltype(linear)::value>(gaussians, f, scratch, g, n);
    });
  }
  gaussians.chain_mu(g.mu, n);
  for (int k = 0; k < 4; ++k) {
    gaussians.mask(grads[k], n);
    store<S>(p.space, *operands[k], begin, n, grads[k]);
  }
}

template <typename S, typename Family>
void backward_tile(const BackwardParams& p, const Family& f, const Key& key, int64_t t) {
  const Tile tile = tile_at(p.space, t);
  for (int at = 0; at < tile.n; at += kPiece) {
    backward_piece<S>(p, f, key, tile, at, std::min(kPiece, tile.n - at));
  }
}

template <typename S, bool plain>
void backward_tiles(void* context, int64_t begin, int64_t end) {
  const auto& task = *static_cast<const Task<BackwardParams>*>(context);
  for (int64_t t = begin; t < end; ++t) {
    if constexpr (plain) {
      backward_tile<S>(task.params, math::Plain<arithmetic_t<S>>{}, task.key, t);
    } else {
      backward_tile<S>(task.params, task.family_of(arithmetic_t<S>{}), task.key, t);
    }
  }
}

}  // namespace

const Bodies kBackward = {
    {backward_tiles<float, true>, backward_tiles<double, true>, backward_tiles<Half, true>,
     backward_tiles<BFloat16, true>},
    {backward_tiles<float, false>, backward_tiles<double, false>, backward_tiles<Half, false>,
     backward_tiles<BFloat16, false>}};

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
