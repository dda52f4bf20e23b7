// Computes a tile of the backward kernel, for one instruction set. As in forward_tile.h, the tile
// is computed in pieces.
#pragma once

#include "cpu/latent/gaussians.h"
#include "cpu/rows.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// With DefaultOptions: computes the gradients of mu and x from the gradients of z and of the KL,
// either of which may be absent.
template <bool sampled, bool with_kl, bool clamps, bool masked, typename T>
VAE_FUSED_NOINLINE void adjoint(math::DefaultOptions<T> o, const T* mu, const T* raw, const T* mask,
                                const T* gz, const T* eps, const T* gk, T* gmu, T* graw, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> r = get(raw + j), g = get(gz + j);
    const Lanes<T> x = math::clamp_raw<clamps>(o, r), zero = T(0);
    const auto exps = math::exponentials(x);
    Lanes<T> to_mu = g, to_x = zero;
    if constexpr (sampled) to_x = math::sample_adjoint(o, g * get(eps + j), exps.sigma);
    if constexpr (with_kl) {
      const math::Relative<Lanes<T>> relative{get(mu + j), x, exps.excess(x)};
      const auto kl_grads = math::kl_adjoint(o, false, relative, Lanes<T>(T(1)), get(gk + j));
      to_mu = to_mu + kl_grads.mu;
      to_x = to_x + kl_grads.x;
    }
    to_x = math::undo_doubling(o, to_x);
    if constexpr (clamps) to_x = select(math::is_outside(r, o.low, o.high), zero, to_x);
    put(zero_if_masked<masked>(mask, j, to_mu), gmu + j);
    put(zero_if_masked<masked>(mask, j, to_x), graw + j);
  }
}

// With DefaultOptions: computes the gradients of mu and x from the gradients of z and of the KL
// estimated from the sample.
template <bool stop_q, bool clamps, bool masked, typename T>
VAE_FUSED_NOINLINE void log_ratio_adjoint(math::DefaultOptions<T> o, const T* mu, const T* raw,
                                          const T* mask, const T* gz, const T* eps, const T* gk,
                                          T* gmu, T* graw, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> r = get(raw + j), e = get(eps + j), zero = T(0);
    const Lanes<T> sigma = math::exponentials(math::clamp_raw<clamps>(o, r)).sigma;
    const Lanes<T> z = math::sample(o, get(mu + j), sigma, e);
    const auto adjoint =
        math::log_ratio_adjoint(o, stop_q, z, Lanes<T>(T(1)), sigma, e, get(gk + j));
    const Lanes<T> to_z = get(gz + j) + adjoint.z;
    Lanes<T> to_x = math::sample_adjoint(o, to_z * e, sigma) + adjoint.x;
    to_x = math::undo_doubling(o, to_x);
    if constexpr (clamps) to_x = select(math::is_outside(r, o.low, o.high), zero, to_x);
    put(zero_if_masked<masked>(mask, j, to_z + adjoint.mu), gmu + j);
    put(zero_if_masked<masked>(mask, j, to_x), graw + j);
  }
}

template <bool masked, typename T>
VAE_FUSED_NOINLINE void noise_adjoint(math::DefaultOptions<T> o, const T* raw, const T* mask,
                                      const T* gz, T* geps, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> sigma = math::exponentials(math::clamp_raw(o, get(raw + j))).sigma;
    put(zero_if_masked<masked>(mask, j, math::noise_adjoint(o, get(gz + j), sigma)), geps + j);
  }
}

template <typename S, typename T>
VAE_FUSED_HD void backward_piece(const BackwardParams& p, const math::DefaultOptions<T>& o,
                                 GaussianPiece<math::DefaultOptions<T>, true>&, const Key& key,
                                 const Tile& tile, const Piece& piece) {
  alignas(64) T mu_buffer[kPiece], raw_buffer[kPiece], gz_buffer[kPiece], noise[kPiece];
  alignas(64) T mask[kPiece], gmu_buffer[kPiece], graw_buffer[kPiece];
  alignas(64) RowsBuffer<T> gk;
  const int n = piece.whole();
  Prefetcher prefetcher(kPiece * sizeof(S));
  const T* const mu =
      p.grad_kl.data ? load<S>(p.space, p.gaussians.mu, piece, mu_buffer, prefetcher) : nullptr;
  const T* const raw = load<S>(p.space, p.gaussians.raw, piece, raw_buffer, prefetcher);
  const bool is_masked = p.gaussians.mask.data;
  if (is_masked) load_mask(p.space, p.gaussians.mask, piece, mask);
  const T* gz = gz_buffer;
  if (p.grad_z.data) {
    gz = load<S>(p.space, p.grad_z, piece, gz_buffer, prefetcher);
  } else {
    fill_with(T(0), gz_buffer, n);
  }
  if (p.grad_eps.data) {
    T* const geps = target<S>(p.space, p.grad_eps, piece, noise, prefetcher);
    with_flags([&](auto masked) { noise_adjoint<masked>(o, raw, mask, gz, geps, n); }, is_masked);
    store<S>(p.space, p.grad_eps, piece, geps, noise);
  }
  if (p.grad_kl.data) load_row_grads(p.space, p.grad_kl, tile, piece, gk);
  T* const gmu = target<S>(p.space, p.grad_mu, piece, gmu_buffer, prefetcher);
  T* const graw = target<S>(p.space, p.grad_raw, piece, graw_buffer, prefetcher);
  const bool at_sample = p.grad_kl.data && p.gaussians.options.at_sample;
  const bool is_sampled = p.grad_z.data && p.grad_raw.data;
  const T* const eps = is_sampled || at_sample
                           ? load_noise<S>(p.space, p.eps, key, 0, piece, noise, prefetcher)
                           : nullptr;
  if (at_sample) {
    with_flags(
        [&](auto stop_q, auto clamps, auto masked) {
          log_ratio_adjoint<stop_q, clamps, masked>(o, mu, raw, mask, gz, eps, gk, gmu, graw, n);
        },
        p.gaussians.options.stop_q, o.clamps(), is_masked);
  } else {
    with_flags(
        [&](auto sampled, auto with_kl, auto clamps, auto masked) {
          adjoint<sampled, with_kl, clamps, masked>(o, mu, raw, mask, gz, eps, gk, gmu, graw, n);
        },
        is_sampled, p.grad_kl.data, o.clamps(), is_masked);
  }
  store<S>(p.space, p.grad_mu, piece, gmu, gmu_buffer);
  store<S>(p.space, p.grad_raw, piece, graw, graw_buffer);
}

// The gradients that a piece accumulates. `mu` first contains the gradients of z, summed over the
// samples. `raw` first contains the sum of grad_z * eps over the samples, and is then converted to
// the gradient of the raw scale. `mean` and `prior` contain the gradients of the prior's mean and
// raw scale.
template <typename T>
struct Gradients {
  T *mu, *raw, *mean, *prior;
};

// Adds x to the sums. The first sample initialises them.
template <bool first, typename T>
VAE_FUSED_NOINLINE void add(const T* x, T* to, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    put(first ? get(x + j) : get(to + j) + get(x + j), to + j);
  }
}

template <bool first, typename T>
VAE_FUSED_NOINLINE void add_product(const T* x, const T* y, T* to, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> product = get(x + j) * get(y + j);
    put(first ? product : get(to + j) + product, to + j);
  }
}

template <typename T>
VAE_FUSED_NOINLINE void noise_adjoint(const GaussianPiece<math::LatentOptions<T>, true>& gaussians,
                                      math::LatentOptions<T> o, const T* gz, T* geps, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    put(math::noise_adjoint(o, get(gz + j), gaussians.posterior(j).scale.sigma), geps + j);
  }
}

template <typename T>
VAE_FUSED_NOINLINE void scale_adjoint(const GaussianPiece<math::LatentOptions<T>, true>& gaussians,
                                      math::LatentOptions<T> o, T* graw, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    put(math::sample_adjoint(o, get(graw + j), gaussians.posterior(j).scale.dsigma), graw + j);
  }
}

// Adds the gradients of a sample and of the KL estimated from it. `direct` accumulates the part of
// the gradient of ln sigma^2 that does not pass through z. `geps` receives the gradient of eps, or
// is null.
template <bool stop_q, bool scaled, bool learned, typename T>
VAE_FUSED_NOINLINE void add_log_ratio_adjoint(
    const GaussianPiece<math::LatentOptions<T>, true>& gaussians, math::LatentOptions<T> o,
    const T* eps, const T* gk, const T* gz, T* direct, T* geps, Gradients<T> g, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto q = gaussians.posterior(j);
    const auto prior = gaussians.template prior<scaled>(j);
    const Lanes<T> e = get(eps + j), sigma = q.scale.sigma;
    const Lanes<T> d = math::relative_sample(o, q.mu, sigma, prior, e);
    const auto adjoint =
        math::log_ratio_adjoint(o, stop_q, d, prior.precision, sigma, e, get(gk + j));
    const Lanes<T> to_z = get(gz + j) + adjoint.z;
    put(get(g.mu + j) + to_z + adjoint.mu, g.mu + j);
    put(get(g.raw + j) + to_z * e, g.raw + j);
    put(get(direct + j) + adjoint.x, direct + j);
    if (geps) put(math::noise_adjoint(o, to_z, sigma) + adjoint.eps, geps + j);
    if constexpr (learned) {
      put(get(g.mean + j) + adjoint.mean, g.mean + j);
      put(get(g.prior + j) + math::chain(adjoint.prior_x, prior.dx), g.prior + j);
    }
  }
}

template <typename T>
VAE_FUSED_NOINLINE void add_direct(const GaussianPiece<math::LatentOptions<T>, true>& gaussians,
                                   const T* direct, T* graw, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    put(get(graw + j) + math::chain(get(direct + j), gaussians.posterior(j).scale.dx), graw + j);
  }
}

template <bool is_linear_form, bool scaled, bool learned, typename T>
VAE_FUSED_NOINLINE void add_kl_adjoint(const GaussianPiece<math::LatentOptions<T>, true>& gaussians,
                                       math::LatentOptions<T> o, const T* gk, Gradients<T> g,
                                       int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto q = gaussians.posterior(j);
    const auto prior = gaussians.template prior<scaled>(j);
    const auto kl_grads = math::kl_adjoint(o, is_linear_form, math::relative(o, q, prior),
                                           prior.precision, get(gk + j));
    put(get(g.mu + j) + kl_grads.mu, g.mu + j);
    put(get(g.raw + j) + math::chain(kl_grads.x, q.scale.dx), g.raw + j);
    if constexpr (learned) {
      put(kl_grads.mean, g.mean + j);
      put(math::chain(kl_grads.prior_x, prior.dx), g.prior + j);
    }
  }
}

template <typename S, typename T>
VAE_FUSED_HD void backward_piece(const BackwardParams& p, const math::LatentOptions<T>& o,
                                 GaussianPiece<math::LatentOptions<T>, true>& gaussians,
                                 const Key& key, const Tile& tile, const Piece& piece) {
  alignas(64) T gz_buffer[kPiece], buffers[4][kPiece];
  alignas(64) T noise[kPiece], geps_buffer[kPiece], direct[kPiece];
  alignas(64) RowsBuffer<T> gk;
  const int n = piece.whole();
  Prefetcher prefetcher(kPiece * sizeof(S));
  gaussians.template prepare<S>(p.space, p.gaussians, o, piece, p.grad_kl.data, prefetcher);
  const Operand* const operands[] = {&p.grad_mu, &p.grad_raw, &p.grad_prior_mean,
                                     &p.grad_prior_raw};
  T* grads[4];
  for (int k = 0; k < 4; ++k) {
    grads[k] = target<S>(p.space, *operands[k], piece, buffers[k], prefetcher);
  }
  const Gradients<T> g = {grads[0], grads[1], grads[2], grads[3]};

  // The gradient of a KL estimated from samples passes through the samples.
  const bool with_kl = p.grad_kl.data, at_sample = with_kl && o.at_sample;
  const bool has_samples = p.grad_z.data || at_sample;
  const bool needs_eps = at_sample || (p.grad_z.data && p.grad_raw.data);
  const bool is_learned = p.grad_prior_mean.data || p.grad_prior_raw.data;
  if (!has_samples || at_sample) fill_with(T(0), g.mu, n);
  if (!has_samples || at_sample || !p.grad_raw.data) fill_with(T(0), g.raw, n);
  if (!with_kl || at_sample) {
    fill_with(T(0), g.mean, n);
    fill_with(T(0), g.prior, n);
  }
  if (at_sample) fill_with(T(0), direct, n);
  for (int64_t s = 0; has_samples && s < p.gaussians.samples; ++s) {
    const T* gz = gz_buffer;
    if (p.grad_z.data) {
      gz = load<S>(p.space, operand_of_sample<S>(p.grad_z, s), piece, gz_buffer, prefetcher);
    } else {
      fill_with(T(0), gz_buffer, n);
    }
    const T* const eps =
        needs_eps ? load_noise<S>(p.space, p.eps, key, s, piece, noise, prefetcher) : nullptr;
    const Operand grad_eps = operand_of_sample<S>(p.grad_eps, s);
    T* const geps =
        grad_eps.data ? target<S>(p.space, grad_eps, piece, geps_buffer, prefetcher) : nullptr;
    if (at_sample) {
      load_row_grads(p.space, row_grads_of_sample<T>(p.grad_kl, p.space.rows, s), tile, piece, gk);
      with_flags(
          [&](auto stop_q, auto scaled, auto learned) {
            add_log_ratio_adjoint<stop_q, scaled, learned>(gaussians, o, eps, gk, gz, direct, geps,
                                                           g, n);
          },
          o.stop_q, p.gaussians.prior_raw.data, is_learned);
    } else {
      if (geps) noise_adjoint(gaussians, o, gz, geps, n);
      s == 0 ? add<true>(gz, g.mu, n) : add<false>(gz, g.mu, n);
      if (eps)
        s == 0 ? add_product<true>(gz, eps, g.raw, n) : add_product<false>(gz, eps, g.raw, n);
    }
    if (geps) {
      gaussians.mask(geps, n);
      store<S>(p.space, grad_eps, piece, geps, geps_buffer);
    }
    prefetcher.clear();
  }
  if (has_samples && p.grad_raw.data) scale_adjoint(gaussians, o, g.raw, n);
  if (at_sample) {
    add_direct(gaussians, direct, g.raw, n);
  } else if (with_kl) {
    load_row_grads(p.space, p.grad_kl, tile, piece, gk);
    const auto add_adjoint = [&](auto is_linear_form, auto scaled, auto learned) {
      add_kl_adjoint<is_linear_form, scaled, learned>(gaussians, o, gk, g, n);
    };
    with_flags(add_adjoint, o.is_linear_form, p.gaussians.prior_raw.data, is_learned);
  }
  gaussians.chain_mu(g.mu, n);
  for (int k = 0; k < 4; ++k) {
    if (!operands[k]->data) continue;
    gaussians.mask(grads[k], n);
    store<S>(p.space, *operands[k], piece, grads[k], buffers[k]);
  }
}

template <typename S, typename Options>
VAE_FUSED_HD void backward_tiles_of(const BackwardParams& p, const Options& o, const Key& key,
                                    int64_t begin, int64_t end) {
  GaussianPiece<Options, true> gaussians(p.gaussians, o);
  for (int64_t t = begin; t < end; ++t) {
    const Tile tile = tile_at(p.space, t);
    for (int at = 0; at < tile.n; at += kPiece) {
      backward_piece<S>(p, o, gaussians, key, tile, piece_of(tile, at));
    }
  }
}

template <typename S, bool is_default>
void backward_tiles(void* context, int64_t begin, int64_t end) {
  const auto& task = *static_cast<const Task<BackwardParams>*>(context);
  using T = arithmetic_t<S>;
  if constexpr (is_default) {
    backward_tiles_of<S>(task.params, math::default_options<T>(task.params.gaussians.options),
                         task.key, begin, end);
  } else {
    backward_tiles_of<S>(task.params, task.options_of(T{}), task.key, begin, end);
  }
}

}  // namespace

const LatentBodies kBackward = {{{backward_tiles<float, true>, backward_tiles<double, true>,
                                  backward_tiles<Half, true>, backward_tiles<BFloat16, true>}},
                                {{backward_tiles<float, false>, backward_tiles<double, false>,
                                  backward_tiles<Half, false>, backward_tiles<BFloat16, false>}}};

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
