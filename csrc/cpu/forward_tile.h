// A tile of the forward kernel, for one instruction set. A piece goes load -> noise -> arithmetic
// -> store over buffers that stay in the nearest cache. Cost: one pass over the tensors, nothing
// tensor-sized in between.
#pragma once

#include "cpu/gaussians.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

// Widening costs more than adding, so four elements are added first in their own type: 1.2e-7 of
// their magnitudes at most, and less the more there are.
template <typename T>
VAE_FUSED_HD double sum_of_four(T a, T b, T c, T d) {
  return static_cast<double>((a + b) + (c + d));
}

// Sixteen interleaved double sums, combined in a fixed order: two vectors on AVX-512.
constexpr int kSums = 16;

template <typename T>
VAE_FUSED_ALONE double sum(const T* values, int n) {
  double sum[kSums] = {};
  int j = 0;
  for (; j + 4 * kSums <= n; j += 4 * kSums) {
    const T* const v = values + j;
    for (int l = 0; l < kSums; ++l) {
      sum[l] += sum_of_four(v[l], v[l + kSums], v[l + 2 * kSums], v[l + 3 * kSums]);
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

// A few elements: a call and sixteen sums cost 16 ns a row, 9.1 ns an element where rows have two.
// The processor adds several rows at a time by itself.
template <typename T>
VAE_FUSED_HD double sum_short(const T* values, int n) {
  double sum = 0;
  int j = 0;
  for (; j + 4 <= n; j += 4) {
    sum += sum_of_four(values[j], values[j + 1], values[j + 2], values[j + 3]);
  }
  for (; j < n; ++j) sum += static_cast<double>(values[j]);
  return sum;
}

// What becomes of a tile's elements' KL, of each twice.
template <typename T>
VAE_FUSED_ALONE void sum_rows(const ForwardParams& p, const Tile& tile, int64_t t,
                              const T* values) {
  if (p.partials) {
    p.partials[t] = sum(values, tile.n);
    return;
  }
  T* const kl = static_cast<T*>(p.kl) + tile.row;
  const int cols = static_cast<int>(p.space.cols);
  const double scale = 0.5 * p.kl_scale;
  if (cols == 1) {  // reduction="none": no sum, so keep the loop vectorisable
    const T factor = static_cast<T>(scale);
    for (int j = 0; j < tile.n; ++j) kl[j] = factor * values[j];
    return;
  }
  if (cols < 4 * kSums) {
    for (int r = 0; r < tile.rows; ++r) {
      kl[r] = static_cast<T>(scale * sum_short(values + r * cols, cols));
    }
    return;
  }
  for (int r = 0; r < tile.rows; ++r) {
    kl[r] = static_cast<T>(scale * sum(values + r * cols, cols));
  }
}

// Plain: sigma and the KL share their exponentials, hence one loop.
template <bool sampled, bool with_kl, bool clamps, bool masked, typename T>
VAE_FUSED_ALONE void sample_and_kl(math::Plain<T> f, const T* mu, const T* raw, const T* mask,
                                   const T* eps, T* z, T* kl, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const Lanes<T> m = get(mu + j), x = math::limited<clamps>(f, get(raw + j));
    const auto exps = math::exponentials(x);
    if constexpr (sampled) {
      put(kept<masked>(mask, j, math::sample(f, m, exps.e, get(eps + j))), z + j);
    }
    if constexpr (with_kl) {
      const math::Relative<Lanes<T>> relative{m, x, exps.excess(x)};
      put(kept<masked>(mask, j, math::twice_kl(f, false, relative)), kl + j);
    }
  }
}

template <typename S, typename T>
VAE_FUSED_HD void forward_piece(const ForwardParams& p, const math::Plain<T>& f,
                                GaussianPiece<math::Plain<T>, false>&, const Key& key,
                                const Piece& piece, T* kl) {
  alignas(64) T mu_buffer[kPiece], raw_buffer[kPiece], mask[kPiece], z_buffer[kPiece];
  const int n = piece.whole();
  Wanted wanted(kPiece * sizeof(S));
  const T* const mu = load<S>(p.space, p.of.mu, piece, mu_buffer, wanted);
  const T* const raw = load<S>(p.space, p.of.raw, piece, raw_buffer, wanted);
  if (p.of.mask.data) load_mask(p.space, p.of.mask, piece, mask);
  const bool is_sampled = p.z.data;
  T* const z = target<S>(p.space, p.z, piece, z_buffer, wanted);
  const T* const eps =
      is_sampled ? load_noise<S>(p.space, p.eps, key, 0, piece, z_buffer, wanted) : nullptr;
  with_flags(
      [&](auto sampled, auto with_kl, auto clamps, auto masked) {
        sample_and_kl<sampled, with_kl, clamps, masked>(f, mu, raw, mask, eps, z, kl, n);
      },
      is_sampled, p.kl, f.clamps(), p.of.mask.data);
  store<S>(p.space, p.z, piece, z, z_buffer);
}

template <typename T>
VAE_FUSED_ALONE void sample(const GaussianPiece<math::Family<T>, false>& gaussians,
                            math::Family<T> f, const T* eps, T* z, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto q = gaussians.posterior(j);
    put(math::sample(f, q.mu, q.scale.sigma, get(eps + j)), z + j);
  }
}

template <bool linear, bool scaled, typename T>
VAE_FUSED_ALONE void kl_of(const GaussianPiece<math::Family<T>, false>& gaussians,
                           math::Family<T> f, T* kl, int n) {
  for (int j = 0; j < n; j += kStep<T>) {
    const auto relative =
        math::relative(f, gaussians.posterior(j), gaussians.template prior<scaled>(j));
    put(math::twice_kl(f, linear, relative), kl + j);
  }
}

template <typename S, typename T>
VAE_FUSED_HD void forward_piece(const ForwardParams& p, const math::Family<T>& f,
                                GaussianPiece<math::Family<T>, false>& gaussians, const Key& key,
                                const Piece& piece, T* kl) {
  alignas(64) T z_buffer[kPiece];
  const int n = piece.whole();
  Wanted wanted(kPiece * sizeof(S));
  gaussians.template prepare<S>(p.space, p.of, f, piece, p.kl, wanted);
  for (int64_t s = 0; p.z.data && s < p.of.samples; ++s) {
    const Operand operand = of_sample<S>(p.z, s);
    T* const z = target<S>(p.space, operand, piece, z_buffer, wanted);
    const T* const eps = load_noise<S>(p.space, p.eps, key, s, piece, z_buffer, wanted);
    sample(gaussians, f, eps, z, n);
    gaussians.mask(z, n);
    store<S>(p.space, operand, piece, z, z_buffer);
    wanted.clear();
  }
  if (!p.kl) return;
  with_flags([&](auto linear, auto scaled) { kl_of<linear, scaled>(gaussians, f, kl, n); },
             f.linear, p.of.prior_raw.data);
  gaussians.mask(kl, n);
}

template <typename S, typename Family>
VAE_FUSED_HD void forward_tiles_of(const ForwardParams& p, const Family& f, const Key& key,
                                   int64_t begin, int64_t end) {
  alignas(64) arithmetic_t<S> kl[kTile + kSums];
  GaussianPiece<Family, false> gaussians(p.of, f);
  for (int64_t t = begin; t < end; ++t) {
    const Tile tile = tile_at(p.space, t);
    for (int at = 0; at < tile.n; at += kPiece) {
      forward_piece<S>(p, f, gaussians, key, piece_of(tile, at), kl + at);
    }
    if (p.kl) sum_rows(p, tile, t, kl);
  }
}

template <typename S, bool plain>
void forward_tiles(void* context, int64_t begin, int64_t end) {
  const auto& task = *static_cast<const Task<ForwardParams>*>(context);
  using T = arithmetic_t<S>;
  if constexpr (plain) {
    forward_tiles_of<S>(task.params, math::plain<T>(task.params.of.family), task.key, begin, end);
  } else {
    forward_tiles_of<S>(task.params, task.family_of(T{}), task.key, begin, end);
  }
}

}  // namespace

const Bodies kForward = {{forward_tiles<float, true>, forward_tiles<double, true>,
                          forward_tiles<Half, true>, forward_tiles<BFloat16, true>},
                         {forward_tiles<float, false>, forward_tiles<double, false>,
                          forward_tiles<Half, false>, forward_tiles<BFloat16, false>}};

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
