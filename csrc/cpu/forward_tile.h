// A tile of the forward kernel, for one instruction set. A piece goes load -> noise -> arithmetic
// -> store over buffers that stay in the nearest cache. Cost: one pass over the tensors, nothing
// tensor-sized in between.
#pragma once

#include "cpu/gaussians.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// Sixteen interleaved double sums, combined in a fixed order: two vectors on AVX-512. Widening
// costs more than adding, so four elements are added first in their own type; as no element is
// negative that is 1.2e-7 relative at most, and less the more there are.
constexpr int kSums = 16;

template <typename T>
VAE_FUSED_ALONE double sum(const T* values, int n) {
  double sum[kSums] = {};
  int j = 0;
  for (; j + 4 * kSums <= n; j += 4 * kSums) {
    const T* const v = values + j;
    for (int l = 0; l < kSums; ++l) {
      const T low = v[l] + v[l + kSums], high = v[l + 2 * kSums] + v[l + 3 * kSums];
      sum[l] += static_cast<double>(low + high);
    }
  }
  for (; j < n; j += kSums) {
    for (int l = 0; l < kSums; ++l) {
      const T value =
          values[j + l];  // read even where it is not one, or the loop is not vectorised
      sum[l] += l < n - j ? static_cast<double>(value) : 0.0;
    }
  }
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sum[l] += sum[l + width];
  }
  return sum[0];
}

// What becomes of the KL of a tile's elements.
template <typename T>
VAE_FUSED_ALONE void sum_rows(const ForwardParams& p, const Tile& tile, int64_t t,
                              const T* values) {
  if (p.space.tiles_per_row > 1) {
    p.partials[t] = sum(values, tile.n);
    return;
  }
  T* const kl = static_cast<T*>(p.kl) + tile.row;
  const int cols = static_cast<int>(p.space.cols);
  if (cols == 1) {  // reduction="none": no sum, so keep the loop vectorisable
    const T scale = static_cast<T>(p.kl_scale);
    for (int j = 0; j < tile.n; ++j) kl[j] = scale * values[j];
    return;
  }
  for (int r = 0; r < tile.rows; ++r) {
    kl[r] = static_cast<T>(p.kl_scale * sum(values + r * cols, cols));
  }
}

// Plain: sigma and the KL share their exponentials, hence one loop.
template <bool sampled, bool with_kl, typename T>
VAE_FUSED_ALONE void sample_and_kl(const T* mu, const T* x, const T* eps, T* z, T* kl, int n) {
  const math::Plain<T> f;
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> m = get(mu + j), raw = get(x + j);
    const auto exps = math::exponentials(raw);
    if constexpr (sampled) put(math::sample(f, m, exps.e, get(eps + j)), z + j);
    if constexpr (with_kl) {
      put(math::kl(f, false, math::Relative<Lanes<T>>{m, raw, exps.excess(raw)}), kl + j);
    }
  }
}

template <typename S, typename T>
VAE_FUSED_HD void forward_piece(const ForwardParams& p, const math::Plain<T>&,
                                GaussianPiece<math::Plain<T>, false>&, const Key& key,
                                const Piece& piece, T* kl) {
  alignas(64) T mu_buffer[kPiece], x_buffer[kPiece], z_buffer[kPiece];
  const int n = piece.whole();
  const T* const mu = load<S>(p.space, p.of.mu, piece, mu_buffer);
  const T* const x = load<S>(p.space, p.of.raw, piece, x_buffer);
  if (!p.z.data) return sample_and_kl<false, true, T>(mu, x, nullptr, nullptr, kl, n);
  const T* const eps = load_noise<S>(p.space, p.eps, key, 0, piece, z_buffer);
  T* const z = target<S>(p.space, p.z, piece, z_buffer);
  if (p.kl) {
    sample_and_kl<true, true>(mu, x, eps, z, kl, n);
  } else {
    sample_and_kl<true, false>(mu, x, eps, z, kl, n);
  }
  store<S>(p.space, p.z, piece, z);
}

template <typename T>
VAE_FUSED_ALONE void sample(const GaussianPiece<math::Family<T>, false>& gaussians,
                            math::Family<T> f, const T* eps, T* z, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto q = gaussians.posterior(j);
    put(math::sample(f, q.mu, q.scale.sigma, get(eps + j)), z + j);
  }
}

template <bool linear, typename T>
VAE_FUSED_ALONE void kl_of(const GaussianPiece<math::Family<T>, false>& gaussians,
                           math::Family<T> f, T* kl, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto relative = math::relative(f, gaussians.posterior(j), gaussians.prior(j));
    put(math::kl(f, linear, relative), kl + j);
  }
}

template <typename S, typename T>
VAE_FUSED_HD void forward_piece(const ForwardParams& p, const math::Family<T>& f,
                                GaussianPiece<math::Family<T>, false>& gaussians, const Key& key,
                                const Piece& piece, T* kl) {
  alignas(64) T z_buffer[kPiece];
  const int n = piece.whole();
  gaussians.template prepare<S>(p.space, p.of, f, piece, p.kl);
  for (int64_t s = 0; p.z.data && s < p.of.samples; ++s) {
    const Operand operand = of_sample<S>(p.z, s);
    const T* const eps = load_noise<S>(p.space, p.eps, key, s, piece, z_buffer);
    T* const z = target<S>(p.space, operand, piece, z_buffer);
    sample(gaussians, f, eps, z, n);
    gaussians.mask(z, n);
    store<S>(p.space, operand, piece, z);
  }
  if (!p.kl) return;
  math::with_flag(f.linear,
                  [&](auto linear) { kl_of<decltype(linear)::value>(gaussians, f, kl, n); });
  gaussians.mask(kl, n);
}

template <typename S, typename Family>
void forward_tile(const ForwardParams& p, const Family& f, const Key& key, int64_t t) {
  alignas(64) arithmetic_t<S> kl[kTile + kSums];
  GaussianPiece<Family, false> gaussians(p.of, f);
  const Tile tile = tile_at(p.space, t);
  for (int at = 0; at < tile.n; at += kPiece) {
    forward_piece<S>(p, f, gaussians, key, {tile.begin + at, std::min(kPiece, tile.n - at)},
                     kl + at);
  }
  if (p.kl) sum_rows(p, tile, t, kl);
}

template <typename S, bool plain>
void forward_tiles(void* context, int64_t begin, int64_t end) {
  const auto& task = *static_cast<const Task<ForwardParams>*>(context);
  for (int64_t t = begin; t < end; ++t) {
    if constexpr (plain) {
      forward_tile<S>(task.params, math::Plain<arithmetic_t<S>>{}, task.key, t);
    } else {
      forward_tile<S>(task.params, task.family_of(arithmetic_t<S>{}), task.key, t);
    }
  }
}

}  // namespace

const Bodies kForward = {{forward_tiles<float, true>, forward_tiles<double, true>,
                          forward_tiles<Half, true>, forward_tiles<BFloat16, true>},
                         {forward_tiles<float, false>, forward_tiles<double, false>,
                          forward_tiles<Half, false>, forward_tiles<BFloat16, false>}};

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
