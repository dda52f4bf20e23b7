// The forward CPU kernel: a task per tile, and for a tile load -> noise -> arithmetic -> store on
// dense buffers that stay in the nearest caches (5 x 8 KiB in float for the plain call), so that
// each loop is a plain vectorisable one. Cost: one pass over the tensors, nothing tensor-sized in
// between.
#include "cpu/dispatch.h"
#include "cpu/gaussians.h"

namespace vae_fused::cpu {
namespace {

// Sixteen interleaved double sums, combined in a fixed order: a vector register's worth on AVX-512,
// and an error below 1e-15 relative however long the tile.
template <typename T>
VAE_FUSED_HD double sum(const T* values, int n) {
  constexpr int kLanes = 16;
  double lane[kLanes] = {};
  int j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int l = 0; l < kLanes; ++l) lane[l] += static_cast<double>(values[j + l]);
  }
  for (; j < n; ++j) lane[j % kLanes] += static_cast<double>(values[j]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  }
  return lane[0];
}

// What becomes of the KL of a tile's elements.
template <typename T>
VAE_FUSED_HD void sum_rows(const ForwardParams& p, const Tile& tile, int64_t t, const T* values) {
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

template <typename S, typename T>
VAE_FUSED_HD void forward_tile(const ForwardParams& p, const math::Plain<T>& f, const Key& key,
                               int64_t t) {
  alignas(64) T mu_buffer[kTile], x_buffer[kTile], sigma[kTile], variance[kTile], out[kTile];
  const Tile tile = tile_at(p.space, t);
  const int n = tile.n;
  const T* const mu = load<S>(p.space, p.of.mu, tile.begin, n, mu_buffer);
  const T* const x = load<S>(p.space, p.of.raw, tile.begin, n, x_buffer);
  for (int j = 0; j < n; ++j) {
    const math::ExpPair<T> pair = math::exponentials(x[j]);
    sigma[j] = pair.e;
    variance[j] = pair.square;
  }
  if (p.z.data) {
    const T* const eps = load_noise<S>(p.space, p.eps, key, 0, tile.begin, n, out);
    T* const z = target<S>(p.z, tile.begin, out);
    for (int j = 0; j < n; ++j) z[j] = math::sample(f, mu[j], sigma[j], eps[j]);
    store<S>(p.space, p.z, tile.begin, n, z);
  }
  if (!p.kl) return;
  for (int j = 0; j < n; ++j) out[j] = math::kl(f, false, {mu[j], x[j], variance[j]});
  sum_rows(p, tile, t, out);
}

template <typename S, typename T>
VAE_FUSED_HD void forward_tile(const ForwardParams& p, math::Family<T> f, const Key& key,
                               int64_t t) {
  alignas(64) T out[kTile];
  GaussianTile<S, false> gaussians;
  const Tile tile = tile_at(p.space, t);
  const int n = tile.n;
  gaussians.load(p.space, p.of, f, tile, p.kl);
  for (int64_t s = 0; p.z.data && s < p.of.samples; ++s) {
    const Operand z_operand = of_sample<S>(p.z, s);
    const T* const eps = load_noise<S>(p.space, p.eps, key, s, tile.begin, n, out);
    T* const z = target<S>(z_operand, tile.begin, out);
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) {
      const math::Posterior<T> q = gaussians.posterior(j);
      z[j] = math::sample(f, q.mu, q.scale.sigma, eps[j]);
    }
    gaussians.mask(z, n);
    store<S>(p.space, z_operand, tile.begin, n, z);
  }
  if (!p.kl) return;
  math::with_flag(f.linear, [&](auto linear) {
    VAE_FUSED_INDEPENDENT
    for (int j = 0; j < n; ++j) {
      const auto relative = math::relative(f, gaussians.posterior(j), gaussians.prior(j));
      out[j] = math::kl(f, decltype(linear)::value, relative);
    }
  });
  gaussians.mask(out, n);
  sum_rows(p, tile, t, out);
}

VAE_FUSED_TASKS(ForwardParams, forward_tile)

// Rows of several tiles: their partial sums, in order.
template <typename T>
void combine(const ForwardParams& p) {
  for (int64_t row = 0; row < p.space.rows; ++row) {
    double total = 0;
    for (int64_t t = 0; t < p.space.tiles_per_row; ++t) {
      total += p.partials[row * p.space.tiles_per_row + t];
    }
    static_cast<T*>(p.kl)[row] = static_cast<T>(p.kl_scale * total);
  }
}

}  // namespace

void forward(const ForwardParams& params, ParallelFor parallel_for) {
  Task<ForwardParams> task(params);
  if (params.key_out) {
    params.key_out[0] = task.key.seed;
    params.key_out[1] = task.key.offset;
  }
  run(task, parallel_for, kBodies);
  if (!params.kl || params.space.tiles_per_row == 1) return;
  params.dtype == DType::kFloat64 ? combine<double>(params) : combine<float>(params);
}

}  // namespace vae_fused::cpu
