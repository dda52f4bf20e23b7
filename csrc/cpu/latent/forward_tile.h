// Computes a tile of the forward kernel, for one instruction set. Each piece is loaded, its noise
// is generated, and its results are computed and stored, all in buffers that stay in the L1 cache.
// The kernel makes one pass over the tensors and creates no intermediate tensors.
#pragma once

#include "cpu/latent/gaussians.h"
#include "cpu/rows.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// With DefaultOptions: sigma and the KL share their exponentials, so one loop computes both.
template <bool sampled, bool with_kl, bool clamps, bool masked, typename T>
VAE_FUSED_NOINLINE void sample_and_kl(math::DefaultOptions<T> o, const T* mu, const T* raw,
                                      const T* mask, const T* eps, T* z, T* kl, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> m = get(mu + j), x = math::clamp_raw<clamps>(o, get(raw + j));
    const auto exps = math::exponentials(x);
    if constexpr (sampled) {
      put(zero_if_masked<masked>(mask, j, math::sample(o, m, exps.sigma, get(eps + j))), z + j);
    }
    if constexpr (with_kl) {
      const math::Relative<Lanes<T>> relative{m, x, exps.excess(x)};
      put(zero_if_masked<masked>(mask, j, math::kl_times_two(o, false, relative)), kl + j);
    }
  }
}

// With DefaultOptions: computes the sample and the KL estimated from it.
template <bool clamps, bool masked, typename T>
VAE_FUSED_NOINLINE void sample_and_log_ratio(math::DefaultOptions<T> o, const T* mu, const T* raw,
                                             const T* mask, const T* eps, T* z, T* kl, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> x = math::clamp_raw<clamps>(o, get(raw + j)), e = get(eps + j);
    const Lanes<T> value = math::sample(o, get(mu + j), math::exponentials(x).sigma, e);
    put(zero_if_masked<masked>(mask, j, value), z + j);
    put(zero_if_masked<masked>(mask, j, math::log_ratio_times_two(o, value, x, e)), kl + j);
  }
}

template <typename S, typename T>
VAE_FUSED_HD void forward_piece(const ForwardParams& p, const math::DefaultOptions<T>& o,
                                GaussianPiece<math::DefaultOptions<T>, false>&, const Key& key,
                                const Piece& piece, T* kl) {
  alignas(64) T mu_buffer[kPiece], raw_buffer[kPiece], mask[kPiece], z_buffer[kPiece];
  const int n = piece.whole();
  Prefetcher prefetcher(kPiece * sizeof(S));
  const T* const mu = load<S>(p.space, p.gaussians.mu, piece, mu_buffer, prefetcher);
  const T* const raw = load<S>(p.space, p.gaussians.raw, piece, raw_buffer, prefetcher);
  if (p.gaussians.mask.data) load_mask(p.space, p.gaussians.mask, piece, mask);
  const bool is_sampled = p.z.data;
  T* const z = target<S>(p.space, p.z, piece, z_buffer, prefetcher);
  const T* const eps =
      is_sampled ? load_noise<S>(p.space, p.eps, key, 0, piece, z_buffer, prefetcher) : nullptr;
  if (p.kl.data && p.gaussians.options.at_sample) {
    with_flags(
        [&](auto clamps, auto masked) {
          sample_and_log_ratio<clamps, masked>(o, mu, raw, mask, eps, z, kl, n);
        },
        o.clamps(), p.gaussians.mask.data);
  } else {
    with_flags(
        [&](auto sampled, auto with_kl, auto clamps, auto masked) {
          sample_and_kl<sampled, with_kl, clamps, masked>(o, mu, raw, mask, eps, z, kl, n);
        },
        is_sampled, p.kl.data, o.clamps(), p.gaussians.mask.data);
  }
  store<S>(p.space, p.z, piece, z, z_buffer);
}

template <typename T>
VAE_FUSED_NOINLINE void sample(const GaussianPiece<math::LatentOptions<T>, false>& gaussians,
                               math::LatentOptions<T> o, const T* eps, T* z, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto q = gaussians.posterior(j);
    put(math::sample(o, q.mu, q.scale.sigma, get(eps + j)), z + j);
  }
}

template <bool is_linear_form, bool scaled, typename T>
VAE_FUSED_NOINLINE void kl_of(const GaussianPiece<math::LatentOptions<T>, false>& gaussians,
                              math::LatentOptions<T> o, T* kl, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto relative =
        math::relative(o, gaussians.posterior(j), gaussians.template prior<scaled>(j));
    put(math::kl_times_two(o, is_linear_form, relative), kl + j);
  }
}

// Computes the sample and its estimate of the KL in one loop, because both read the noise, which z
// overwrites.
template <bool scaled, typename T>
VAE_FUSED_NOINLINE void sample_and_log_ratio(
    const GaussianPiece<math::LatentOptions<T>, false>& gaussians, math::LatentOptions<T> o,
    const T* eps, T* z, T* kl, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto q = gaussians.posterior(j);
    const auto prior = gaussians.template prior<scaled>(j);
    const Lanes<T> e = get(eps + j), value = math::sample(o, q.mu, q.scale.sigma, e);
    put(value, z + j);
    const Lanes<T> d = math::relative_sample(o, q.mu, q.scale.sigma, prior, e);
    put(math::log_ratio_times_two(o, d, q.scale.x - prior.x, e), kl + j);
  }
}

template <typename S, typename T>
VAE_FUSED_HD void forward_piece(const ForwardParams& p, const math::LatentOptions<T>& o,
                                GaussianPiece<math::LatentOptions<T>, false>& gaussians,
                                const Key& key, const Piece& piece, T* kl) {
  alignas(64) T z_buffer[kPiece];
  const int n = piece.whole();
  Prefetcher prefetcher(kPiece * sizeof(S));
  gaussians.template prepare<S>(p.space, p.gaussians, o, piece, p.kl.data, prefetcher);
  const bool at_sample = o.at_sample && p.kl.data;
  for (int64_t s = 0; p.z.data && s < p.gaussians.samples; ++s) {
    const Operand operand = operand_of_sample<S>(p.z, s);
    T* const z = target<S>(p.space, operand, piece, z_buffer, prefetcher);
    const T* const eps = load_noise<S>(p.space, p.eps, key, s, piece, z_buffer, prefetcher);
    if (at_sample) {
      with_flags([&](auto scaled) { sample_and_log_ratio<scaled>(gaussians, o, eps, z, kl, n); },
                 p.gaussians.prior_raw.data);
    } else {
      sample(gaussians, o, eps, z, n);
    }
    gaussians.mask(z, n);
    store<S>(p.space, operand, piece, z, z_buffer);
    prefetcher.clear();
  }
  if (!p.kl.data) return;
  if (!at_sample) {
    with_flags([&](auto is_linear_form,
                   auto scaled) { kl_of<is_linear_form, scaled>(gaussians, o, kl, n); },
               o.is_linear_form, p.gaussians.prior_raw.data);
  }
  gaussians.mask(kl, n);
}

template <typename S, typename Options>
VAE_FUSED_HD void forward_tiles_of(const ForwardParams& p, const Options& o, const Key& key,
                                   int64_t begin, int64_t end) {
  alignas(64) arithmetic_t<S> kl[kTile];
  GaussianPiece<Options, false> gaussians(p.gaussians, o);
  const RowSums sums = kl_sums(p);
  for (int64_t t = begin; t < end; ++t) {
    const Tile tile = tile_at(p.space, t);
    for (int at = 0; at < tile.n; at += kPiece) {
      forward_piece<S>(p, o, gaussians, key, piece_of(tile, at), kl + at);
    }
    if (p.kl.data) sum_rows(sums, tile, t, kl);
  }
}

template <typename S, bool is_default>
void forward_tiles(void* context, int64_t begin, int64_t end) {
  const auto& task = *static_cast<const Task<ForwardParams>*>(context);
  using T = arithmetic_t<S>;
  if constexpr (is_default) {
    forward_tiles_of<S>(task.params, math::default_options<T>(task.params.gaussians.options),
                        task.key, begin, end);
  } else {
    forward_tiles_of<S>(task.params, task.options_of(T{}), task.key, begin, end);
  }
}

}  // namespace

const LatentBodies kForward = {{{forward_tiles<float, true>, forward_tiles<double, true>,
                                 forward_tiles<Half, true>, forward_tiles<BFloat16, true>}},
                               {{forward_tiles<float, false>, forward_tiles<double, false>,
                                 forward_tiles<Half, false>, forward_tiles<BFloat16, false>}}};

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
