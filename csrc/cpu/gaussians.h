// A tile's Gaussians of the general family: posterior and prior on dense buffers, a stage at a
// time, so that each loop is a plain vectorisable one with nothing to decide in it.
#pragma once

#include "cpu/tile.h"
#include "math/gaussian.h"

namespace vae_fused::cpu {

// The derivatives are backward's alone.
template <typename T, bool kDerivatives>
struct ScaleTile {
  alignas(64) T sigma[kTile], x[kTile];
  alignas(64) T dsigma[kDerivatives ? kTile : 1], dx[kDerivatives ? kTile : 1];

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

  VAE_FUSED_HD void fill(int n, const math::Scale<T>& s) {
    for (int j = 0; j < n; ++j) set(j, s);
  }

  // `raw` may be x itself. The options by value: in memory they might be what the loops write.
  VAE_FUSED_HD void compute(math::ScaleOptions<T> o, const T* raw, int n) {
    const auto limit = [&](const auto& clamp) {
      VAE_FUSED_INDEPENDENT
      for (int j = 0; j < n; ++j) {
        const math::Limited<T> limited = math::affine(o, clamp(raw[j]));
        x[j] = limited.x;
        if constexpr (kDerivatives) dx[j] = limited.dx;
      }
    };
    if (o.soft_clamp != T(0)) {
      limit([&](T r) { return math::soft_clamp(r, o.soft_clamp, o.per_soft_clamp); });
    } else {
      limit([&](T r) { return math::hard_clamp(r, o.low, o.high); });
    }
    math::with_base(o.base, [&](auto base) {
      math::with_flag(math::has_floor(o), [&](auto floored) {
        VAE_FUSED_INDEPENDENT
        for (int j = 0; j < n; ++j) {
          T limited_dx = T(0);
          if constexpr (kDerivatives) limited_dx = dx[j];
          set(j, math::scale_of(o, decltype(base)::value, decltype(floored)::value,
                                math::Limited<T>{x[j], limited_dx}));
        }
      });
    });
  }
};

template <typename S, bool kDerivatives>
class GaussianTile {
  using T = arithmetic_t<S>;

 public:
  VAE_FUSED_HD void load(const Space& space, const Gaussians& of, const math::Family<T>& f,
                         const Tile& tile, bool with_prior) {
    const int n = tile.n;
    const auto dense = [&](const Operand& operand, T* buffer) {
      return cpu::load<S>(space, operand, tile.begin, n, buffer);
    };
    mu_ = dense(of.mu, mu_buffer_);
    if (f.mu_soft_clamp != T(0)) {
      VAE_FUSED_INDEPENDENT
      for (int j = 0; j < n; ++j) {
        const auto limited = math::soft_clamp(mu_[j], f.mu_soft_clamp, f.per_mu_soft_clamp);
        mu_buffer_[j] = limited.x;
        if constexpr (kDerivatives) dmu_[j] = limited.dx;
      }
      mu_ = mu_buffer_;
    } else if constexpr (kDerivatives) {
      for (int j = 0; j < n; ++j) dmu_[j] = T(1);
    }
    if (of.raw.data) {
      q_.compute(f.posterior, dense(of.raw, q_.x), n);
    } else {
      q_.fill(n, {T(1), T(0), T(0), T(0)});
    }
    masked_ = of.mask.data;
    if (masked_) load_mask(space, of.mask, tile.begin, n, mask_);
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
    if constexpr (kDerivatives) return {mu_[j], dmu_[j], q_.at(j), T(0)};
    return {mu_[j], T(0), q_.at(j), T(0)};
  }

  VAE_FUSED_HD math::Prior<T> prior(int j) const {
    const math::Scale<T> p = p_.at(j);
    return {mean_[j], p.sigma, p.x, p.dx};
  }

  // Masked elements are nought, whatever their tensors hold.
  VAE_FUSED_HD void mask(T* values, int n) const {
    if (!masked_) return;
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) values[j] = mask_[j] ? values[j] : T(0);
  }

 private:
  const T *mu_, *mean_;
  bool masked_;
  alignas(64) T mu_buffer_[kTile], mean_buffer_[kTile], dmu_[kDerivatives ? kTile : 1];
  ScaleTile<T, kDerivatives> q_, p_;  // p_.sigma holds 1 / tau
  alignas(64) uint8_t mask_[kTile];
};

}  // namespace vae_fused::cpu
