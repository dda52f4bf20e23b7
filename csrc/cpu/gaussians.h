// A piece's Gaussians of the general family: posterior and prior on dense buffers, a stage at a
// time, so that each loop is a plain vectorisable one with nothing to decide in it.
#pragma once

#include "cpu/tile.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// The derivatives are backward's alone.
template <typename T, bool kDerivatives>
struct ScalePiece {
  alignas(64) T sigma[kPiece], x[kPiece];
  alignas(64) T dsigma[kDerivatives ? kPiece : 1], dx[kDerivatives ? kPiece : 1];

  VAE_FUSED_HD void set(int j, const math::Scale<T>& s) {
    sigma[j] = s.sigma;
    x[j] = s.x;
    if constexpr (kDerivatives) {
      dsigma[j] = s.dsigma;
      dx[j] = s.dx;
    }
  }

  VAE_FUSED_HD math::Scale<T> at(int j) const {
    if constexpr (kDerivatives) return {sigma[j], x[j], dsigma[j], dx[j]};
    return {sigma[j], x[j], T(0), T(0)};
  }

  VAE_FUSED_ALONE void fill(int n, const math::Scale<T>& s) {
    for (int j = 0; j < n; ++j) set(j, s);
  }

  // `raw` may be x itself. The options by value: in memory they might be what the loops write.
  VAE_FUSED_ALONE void compute(math::ScaleOptions<T> o, const T* raw, int n) {
    if (o.soft_clamp != T(0)) return compute_softly(o, raw, n);
    math::with_base(o.base, [&](auto base) {
      math::with_flag(math::has_floor(o), [&](auto floored) {
        compute_as<decltype(base)::value, decltype(floored)::value>(o, raw, n);
      });
    });
  }

 private:
  template <math::ScaleBase base, bool floored>
  VAE_FUSED_ALONE void compute_as(math::ScaleOptions<T> o, const T* raw, int n) {
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) {
      const auto limited = math::affine(o, math::hard_clamp(raw[j], o.low, o.high));
      set(j, math::scale_of(o, base, floored, limited));
    }
  }

  // The soft clamp is a layer of its own in front of the others.
  VAE_FUSED_ALONE void compute_softly(math::ScaleOptions<T> o, const T* raw, int n) {
    alignas(64) T slope[kPiece];
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) {
      const auto limited = math::soft_clamp(raw[j], o.soft_clamp, o.per_soft_clamp);
      x[j] = limited.x;
      slope[j] = limited.dx;
    }
    o.soft_clamp = T(0);
    compute(o, x, n);
    if constexpr (kDerivatives) {
      VAE_FUSED_INDEPENDENT
      for (int j = 0; j < n; ++j) {
        dsigma[j] = math::chain(dsigma[j], slope[j]);
        dx[j] = math::chain(dx[j], slope[j]);
      }
    }
  }
};

template <typename T, bool kDerivatives>
class GaussianPiece {
 public:
  template <typename S>
  VAE_FUSED_ALONE void load(const Space& space, const Gaussians& of, const math::Family<T>& f,
                            int64_t begin, int n, bool with_prior) {
    const auto dense = [&](const Operand& operand, T* buffer) {
      return VAE_FUSED_TARGET::load<S>(space, operand, begin, n, buffer);
    };
    mu_ = dense(of.mu, mu_buffer_);
    soft_ = f.mu_soft_clamp != T(0);
    if (soft_) clamp_mu(f.mu_soft_clamp, f.per_mu_soft_clamp, n);
    if (of.raw.data) {
      q_.compute(f.posterior, dense(of.raw, q_.x), n);
    } else {
      q_.fill(n, {T(1), T(0), T(0), T(0)});
    }
    masked_ = of.mask.data;
    if (masked_) load_mask(space, of.mask, begin, n, mask_);
    if (!with_prior) return;
    if (of.prior_mean.data) {
      mean_ = dense(of.prior_mean, mean_buffer_);
    } else {
      mean_ = mean_buffer_;
      for (int j = 0; j < n; ++j) mean_buffer_[j] = f.prior_mean;
    }
    if (of.prior_raw.data) {
      p_.compute(f.prior, dense(of.prior_raw, p_.x), n);
      for (int j = 0; j < n; ++j) p_.sigma[j] = math::precision_of(p_.sigma[j]);
    } else {
      p_.fill(n, {f.prior_precision, f.prior_x, T(0), T(0)});
    }
  }

  VAE_FUSED_HD math::Posterior<T> posterior(int j) const {
    return {mu_[j], T(1), q_.at(j), T(0)};
  }

  VAE_FUSED_HD math::Prior<T> prior(int j) const {
    const math::Scale<T> p = p_.at(j);
    return {mean_[j], p.sigma, p.x, p.dx};
  }

  // From mu to the network's output.
  VAE_FUSED_ALONE void chain_mu(T* grad, int n) const {
    if (!soft_) return;
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) grad[j] *= dmu_[j];
  }

  // Masked elements are nought, whatever their tensors hold.
  VAE_FUSED_ALONE void mask(T* values, int n) const {
    if (!masked_) return;
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) values[j] = mask_[j] ? values[j] : T(0);
  }

 private:
  VAE_FUSED_ALONE void clamp_mu(T c, T per_c, int n) {
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) {
      const auto limited = math::soft_clamp(mu_[j], c, per_c);
      mu_buffer_[j] = limited.x;
      if constexpr (kDerivatives) dmu_[j] = limited.dx;
    }
    mu_ = mu_buffer_;
  }

  const T *mu_, *mean_;
  bool soft_, masked_;
  alignas(64) T mu_buffer_[kPiece], mean_buffer_[kPiece], dmu_[kDerivatives ? kPiece : 1];
  ScalePiece<T, kDerivatives> q_, p_;  // p_.sigma holds 1 / tau
  alignas(64) uint8_t mask_[kPiece];
};

}  // namespace
}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
