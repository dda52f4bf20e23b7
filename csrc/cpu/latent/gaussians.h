// The Gaussians of a piece with LatentOptions: the posterior and the prior, in dense buffers. They
// are computed in stages, so that no loop contains a branch on the options.
#pragma once

#include "cpu/latent/tasks.h"
#include "cpu/tile_io.h"
#include "math/latent/log_ratio.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// Only the backward kernel needs the derivatives.
template <typename T, bool kDerivatives>
struct ScalePiece {
  alignas(64) T sigma[kPiece], x[kPiece];
  alignas(64) T dsigma[kDerivatives ? kPiece : 1], dx[kDerivatives ? kPiece : 1];

  VAE_FUSED_HD void set(int j, const math::Scale<Lanes<T>>& s) {
    put(s.sigma, sigma + j);
    put(s.x, x + j);
    if constexpr (kDerivatives) {
      put(s.dsigma, dsigma + j);
      put(s.dx, dx + j);
    }
  }

  VAE_FUSED_HD math::Scale<Lanes<T>> at(int j) const {
    if constexpr (kDerivatives) return {get(sigma + j), get(x + j), get(dsigma + j), get(dx + j)};
    return {get(sigma + j), get(x + j), T(0), T(0)};
  }

  VAE_FUSED_HD void fill(T sigma_everywhere, T x_everywhere) {
    for (int j = 0; j < kPiece; j += kStep<T>) {
      set(j, {sigma_everywhere, x_everywhere, T(0), T(0)});
    }
  }

  // `raw` may be `x`. The options are passed by value. If they were passed by reference, the
  // compiler would have to assume that the loops write to them.
  VAE_FUSED_NOINLINE void compute(math::ScaleOptions<T> o, const T* raw, int n) {
    if (o.soft_clamp != T(0)) return compute_clamped<true>(o, raw, n);
    if (math::is_clamp(o.low, o.high)) return compute_clamped<false>(o, raw, n);
    compute_unclamped(o, raw, n);
  }

 private:
  // Computes the scale without a clamp.
  VAE_FUSED_HD void compute_unclamped(const math::ScaleOptions<T>& o, const T* raw, int n) {
    const bool floored = math::has_floor(o);
    math::with_base(o.base, [&](auto b) {
      constexpr math::ScaleBase base = decltype(b)::value;
      if (floored) {
        compute_base<base>(o, raw, n);
        o.var_floor != T(0) ? finish<true, true>(o, n) : finish<true, false>(o, n);
      } else if constexpr (base == math::ScaleBase::kSoftplus) {
        compute_base<base>(o, raw, n);
        finish<false, false>(o, n);
      } else {
        compute_as<base>(o, raw, n);
      }
    });
  }

  template <math::ScaleBase base>
  VAE_FUSED_NOINLINE void compute_as(math::ScaleOptions<T> o, const T* raw, int n) {
    for (int j = 0; j < n; j += kStep<T>) {
      set(j, math::scale_of(o, base, false, math::Clamped<Lanes<T>>{get(raw + j), T(1)}));
    }
  }

  // In a single loop, the exponential and the logarithm of softplus, followed by the logarithm of
  // the result, would form a dependency chain that is too long for the processor to overlap with
  // the chain of the next vector. So for softplus, and if there are floors, a first loop computes
  // sigma without the floors.
  template <math::ScaleBase base>
  VAE_FUSED_NOINLINE void compute_base(math::ScaleOptions<T> o, const T* raw, int n) {
    for (int j = 0; j < n; j += kStep<T>) {
      const Lanes<T> t = math::base_argument(o, base, get(raw + j)), slope = T(1);
      set(j, math::base_of(o, base, t, slope));
    }
  }

  // Applies floors, or computes the logarithm of softplus. Neither depends on t.
  template <bool floored, bool rooted>
  VAE_FUSED_NOINLINE void finish(math::ScaleOptions<T> o, int n) {
    constexpr auto base = floored ? math::ScaleBase::kIdentity : math::ScaleBase::kSoftplus;
    if constexpr (!rooted) o.var_floor = T(0);
    for (int j = 0; j < n; j += kStep<T>) {
      set(j, math::apply_floors(o, base, floored, Lanes<T>(T(0)), at(j)));
    }
  }

  // A clamp is a separate stage that runs before the others.
  template <bool soft>
  VAE_FUSED_NOINLINE void compute_clamped(math::ScaleOptions<T> o, const T* raw, int n) {
    alignas(64) T slope[kPiece];
    for (int j = 0; j < n; j += kStep<T>) {
      const Lanes<T> r = get(raw + j);
      const auto clamped = soft ? math::soft_clamp(r, o.soft_clamp, o.per_soft_clamp)
                                : math::hard_clamp(r, o.low, o.high);
      put(clamped.x, x + j);
      put(clamped.dx, slope + j);
    }
    compute_unclamped(o, x, n);
    if constexpr (kDerivatives) {
      for (int j = 0; j < n; j += kStep<T>) {
        put(math::chain(get(dsigma + j), get(slope + j)), dsigma + j);
        put(math::chain(get(dx + j), get(slope + j)), dx + j);
      }
    }
  }
};

// DefaultOptions needs no buffers, because its loops read mu and raw directly.
template <typename Options, bool kDerivatives>
struct GaussianPiece {
  VAE_FUSED_HD GaussianPiece(const Gaussians&, const Options&) {}
};

template <typename T, bool kDerivatives>
class GaussianPiece<math::LatentOptions<T>, kDerivatives> {
 public:
  // Values that no tensor provides are the same for all pieces, so they are set here.
  VAE_FUSED_HD GaussianPiece(const Gaussians& gaussians, const math::LatentOptions<T>& o) {
    if (!gaussians.raw.data) q_.fill(T(1), T(0));
    mean_ = mean_buffer_;
    if (!gaussians.prior_mean.data) fill_with(o.prior_mean, mean_buffer_, kPiece);
    if (!gaussians.prior_raw.data) p_.fill(o.prior_precision, o.prior_x);
  }

  template <typename S>
  VAE_FUSED_NOINLINE void prepare(const Space& space, const Gaussians& gaussians,
                                  const math::LatentOptions<T>& o, const Piece& piece,
                                  bool with_prior, Prefetcher& prefetcher) {
    const int n = piece.whole();
    const auto values = [&](const Operand& operand, T* buffer) {
      return load<S>(space, operand, piece, buffer, prefetcher);
    };
    mu_ = values(gaussians.mu, mu_buffer_);
    soft_ = o.mu_soft_clamp != T(0);
    if (soft_) clamp_mu(o.mu_soft_clamp, o.per_mu_soft_clamp, n);
    if (gaussians.raw.data) q_.compute(o.posterior, values(gaussians.raw, q_.x), n);
    masked_ = gaussians.mask.data;
    if (masked_) load_mask(space, gaussians.mask, piece, mask_);
    if (!with_prior) return;
    if (gaussians.prior_mean.data) mean_ = values(gaussians.prior_mean, mean_buffer_);
    if (!gaussians.prior_raw.data) return;
    p_.compute(o.prior, values(gaussians.prior_raw, p_.x), n);
  }

  VAE_FUSED_HD math::Posterior<Lanes<T>> posterior(int j) const {
    return {get(mu_ + j), T(1), q_.at(j), {}};
  }

  // `scaled` means that a tensor provides the scale of the prior. Computing its reciprocal takes 16
  // cycles, which overlap with the other work of the KL loops.
  template <bool scaled>
  VAE_FUSED_HD math::Prior<Lanes<T>> prior(int j) const {
    const math::Scale<Lanes<T>> p = p_.at(j);
    return {get(mean_ + j), scaled ? math::precision_of(p.sigma) : p.sigma, p.x, p.dx};
  }

  // Converts the gradient of mu to the gradient of the network's output.
  VAE_FUSED_NOINLINE void chain_mu(T* grad, int n) const {
    if (!soft_) return;
    for (int j = 0; j < n; j += kStep<T>) put(get(grad + j) * get(dmu_ + j), grad + j);
  }

  VAE_FUSED_NOINLINE void mask(T* values, int n) const {
    if (!masked_) return;
    for (int j = 0; j < n; j += kStep<T>)
      put(zero_if_masked<true>(mask_, j, get(values + j)), values + j);
  }

 private:
  VAE_FUSED_NOINLINE void clamp_mu(T c, T per_c, int n) {
    for (int j = 0; j < n; j += kStep<T>) {
      const auto clamped = math::soft_clamp(get(mu_ + j), c, per_c);
      put(clamped.x, mu_buffer_ + j);
      if constexpr (kDerivatives) put(clamped.dx, dmu_ + j);
    }
    mu_ = mu_buffer_;
  }

  const T *mu_, *mean_;
  bool soft_, masked_;
  alignas(64) T mu_buffer_[kPiece], mean_buffer_[kPiece], dmu_[kDerivatives ? kPiece : 1];
  ScalePiece<T, kDerivatives> q_, p_;  // without a tensor, p_.sigma contains 1 / tau
  alignas(64) T mask_[kPiece];
};

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
