// The backward CUDA kernel: every gradient in one launch, the noise regenerated from the key.
//
// Bytes per element, float: 12 read (mu, logvar, grad_z), 8 written. No reduction, no barrier.
#include "cuda/tile.cuh"
#include "math/gaussian.h"

namespace vae_fused::cuda {
namespace {

// The elements of a row have the KL's gradient in common.
enum class Rows {
  kNone,      // the KL was not used
  kOne,       // the same for the whole tile
  kElements,  // a row is an element
  kInTile,    // a tile holds whole rows
};

__device__ __forceinline__ Rows rows_of(const BackwardParams& p) {
  if (!p.grad_kl) return Rows::kNone;
  if (p.grad_kl_stride == 0 || p.space.tiles_per_row > 1) return Rows::kOne;
  return p.space.cols == 1 ? Rows::kElements : Rows::kInTile;
}

template <typename S, Access kAccess>
__global__ void __launch_bounds__(kThreads, kBlocks<S, kAccess>)
    backward_kernel(const __grid_constant__ BackwardParams p) {
  using T = arithmetic_t<S>;
  constexpr bool kUsual = kAccess == Access::kLinear;
  constexpr int N = kStep<S, kAccess>, C = kChunk<S, kAccess>;
  const Key key = resolve(p.key);
  const Tile tile = tile_at(p.space, blockIdx.x);
  const Rows rows = rows_of(p);
  const T* const grad_kl = static_cast<const T*>(p.grad_kl) + tile.row * p.grad_kl_stride;
  const T kl_scale = static_cast<T>(p.kl_scale);
  const T one = rows == Rows::kOne ? kl_scale * *grad_kl : T(0);
  const bool used = kUsual || p.grad_z.data, wants_mu = kUsual || p.grad_mu.data;
  const bool wants_x = kUsual || p.grad_logvar.data, wants_eps = !kUsual && p.grad_eps.data;
  const bool given = !kUsual && p.eps.data;
  for (Span span = first_span<N>(tile); span.slot < span.end; span = span + kThreads * N) {
    const int64_t* const strides[] = {p.mu.stride,          p.logvar.stride,     p.grad_z.stride,
                                      p.eps.stride,         p.grad_mu.stride,    p.grad_eps.stride,
                                      p.grad_logvar.stride, p.space.noise_stride};
    int64_t at[8];
    locate<kAccess>(p.space, strides, span.e, at);
    auto x_pack = load<kAccess, S>(p.space, p.logvar, at[1], span);
    Pack<S, N> mu_pack{}, gz_pack{}, eps_pack{};
    if (kUsual || rows != Rows::kNone) {
      mu_pack = load<kAccess, S>(p.space, p.mu, at[0], span);
    }
    if (used) gz_pack = load<kAccess, S>(p.space, p.grad_z, at[2], span);
    if (used && given) eps_pack = load<kAccess, S>(p.space, p.eps, at[3], span);
    VAE_FUSED_UNROLL
    for (int b = 0; b < N / C; ++b) {
      T mu[C], x[C], gz[C], eps[C], gk[C], gx[C], sigma[C];
      widen<C>(mu_pack, b, mu);
      widen<C>(x_pack, b, x);
      widen<C>(gz_pack, b, gz);
      if (given) {
        widen<C>(eps_pack, b, eps);
      } else if (used && wants_x) {
        normals(key, at[7] + b * chunk_stride<S, kAccess>(p.space), eps);
      } else {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) eps[j] = 0;
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) gk[j] = one;
      const Span part = span + b * C;
      if (rows == Rows::kElements) {
        const auto pack = load_vector<T, C>(grad_kl + (part.e - tile.begin), part);
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) gk[j] = kl_scale * pack.s[j];
      } else if (rows == Rows::kInTile) {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) {
          const uint32_t at = static_cast<uint32_t>(part.slot - part.begin + j);
          if (part.has(j)) gk[j] = kl_scale * grad_kl[row_in_tile(p.space, at)];
        }
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        const math::Scale<T> scale = math::scale_of(x[j]);
        sigma[j] = scale.sigma;
        gx[j] = math::sample_adjoint(gz[j], scale.sigma, eps[j]) +
                math::kl_adjoint(gk[j], x[j], scale.variance);
      }
      if (wants_eps) {
        VAE_FUSED_UNROLL
        for (int j = 0; j < C; ++j) eps[j] = gz[j] * sigma[j];
        narrow<C>(eps, b, eps_pack);
      }
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) gz[j] += gk[j] * mu[j];
      narrow<C>(gz, b, gz_pack);  // in place: registers are scarce
      narrow<C>(gx, b, x_pack);
    }
    if (wants_mu) store<kAccess, S>(p.space, p.grad_mu, at[4], span, gz_pack);
    if (wants_eps) store<kAccess, S>(p.space, p.grad_eps, at[5], span, eps_pack);
    if (wants_x) store<kAccess, S>(p.space, p.grad_logvar, at[6], span, x_pack);
  }
}

template <typename S>
cudaError_t backward_as(BackwardParams p, cudaStream_t stream) {
  const bool usual = p.grad_z.data && p.grad_kl && p.grad_mu.data && p.grad_logvar.data &&
                     !p.eps.data && !p.grad_eps.data;
  const bool needs_noise = p.grad_z.data && p.grad_logvar.data && !p.eps.data;
  const auto kernel = [&] {
    switch (access_of<S>(
        p.space, {&p.mu, &p.logvar, &p.eps, &p.grad_z, &p.grad_mu, &p.grad_logvar, &p.grad_eps},
        p.grad_kl, usual, needs_noise)) {
      case Access::kLinear:
        return backward_kernel<S, Access::kLinear>;
      case Access::kStrided:
        return backward_kernel<S, Access::kStrided>;
      case Access::kPatched:
        return backward_kernel<S, Access::kPatched>;
      default:
        return backward_kernel<S, Access::kScalar>;
    }
  }();
  return launch(kernel, p.space.tiles, stream, p);
}

}  // namespace

int backward(const BackwardParams& params, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (params.dtype) {
    case DType::kFloat32:
      return backward_as<float>(params, stream);
    case DType::kFloat64:
      return backward_as<double>(params, stream);
    case DType::kFloat16:
      return backward_as<math::Half>(params, stream);
    default:
      return backward_as<math::BFloat16>(params, stream);
  }
}

}  // namespace vae_fused::cuda
