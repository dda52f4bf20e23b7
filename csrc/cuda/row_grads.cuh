// Kernels that read the gradients of row sums. A thread block computes a tile, and the elements of
// a row share one gradient.
#pragma once

#include "cuda/steps.cuh"
#include "iteration/rows.h"

namespace vae_fused::cuda {

// The sources of the gradient of an element.
enum class GradSource {
  kNone,      // the sums have no gradient
  kOne,       // one gradient for the whole tile
  kElements,  // a row is one element
  kInTile,    // a tile holds whole rows
};

inline GradSource grad_source_of(const Space& space, const RowGrads& grads) {
  if (!grads.data) return GradSource::kNone;
  if (grads.stride == 0 || space.tiles_per_row > 1) return GradSource::kOne;
  return space.cols == 1 ? GradSource::kElements : GradSource::kInTile;
}

// Returns the gradient that all elements of the tile share if `source` is GradSource::kOne, and 0
// otherwise.
template <typename T>
__device__ __forceinline__ T grad_of_tile(const RowGrads& grads, const GradSource& source,
                                          const Tile& tile) {
  if (source != GradSource::kOne) return 0;
  return static_cast<T>(grads.factor) * static_cast<const T*>(grads.data)[tile.row * grads.stride];
}

// Reads the gradients of elements. R is GradSource or a Constant of that type.
template <typename T, class R>
class RowGradSource {
 public:
  // `tile_grad`: see grad_of_tile.
  __device__ __forceinline__ RowGradSource(const Space& space, const RowGrads& grads, R source,
                                           T tile_grad)
      : space_(space), grads_(grads), source_(source), tile_grad_(tile_grad) {}

  __device__ __forceinline__ bool is_present() const { return source_ != GradSource::kNone; }

  // Reads the gradients of the chunk at `part`.
  template <int C, bool kWhole>
  __device__ __forceinline__ void get(const Span<kWhole>& part, T (&out)[C]) const {
    const T* const grads = static_cast<const T*>(grads_.data);
    const T factor = static_cast<T>(grads_.factor);
    VAE_FUSED_UNROLL
    for (int j = 0; j < C; ++j) out[j] = tile_grad_;
    if (source_ == GradSource::kElements) {
      Pack<T, C> pack;
      load_vector(grads + part.element(), part, pack);
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) out[j] = factor * pack.s[j];
    } else if (source_ == GradSource::kInTile) {
      // The tile's first row is computed from blockIdx and a kernel parameter, which occupy no
      // register.
      const T* const tile_grads = grads + blockIdx.x * space_.rows_per_tile;
      VAE_FUSED_UNROLL
      for (int j = 0; j < C; ++j) {
        const uint32_t at = static_cast<uint32_t>(part.in_tile() + j);
        if (part.has(j)) out[j] = factor * tile_grads[row_in_tile(space_, at)];
      }
    }
  }

  // Reads the gradients of the chunk at `part` for one sample, in a call whose samples have
  // separate row sums.
  template <int C, bool kWhole>
  __device__ __forceinline__ void get_for_sample(const Span<kWhole>& part, int64_t sample,
                                                 T (&out)[C]) const {
    const RowGrads grads = row_grads_of_sample<T>(grads_, space_.rows, sample);
    T tile_grad = 0;
    if (source_ == GradSource::kOne) {
      tile_grad = grad_of_tile<T>(grads, GradSource::kOne, tile_of(space_, blockIdx.x));
    }
    RowGradSource(space_, grads, source_, tile_grad).get(part, out);
  }

  __device__ __forceinline__ void end_step() const {}

 private:
  const Space& space_;
  const RowGrads& grads_;
  R source_;
  T tile_grad_;
};

// The body of a kernel that computes a tile. `has_fast_path` comes from KernelChoice. A kernel
// without kServesRows is launched only for calls whose tiles have one gradient each.
template <typename S, Access kAccess, bool kHasFast, bool kServesRows, class Call>
__device__ __forceinline__ void run_tile(Call& call, const Space& space, const Tile& tile,
                                         const RowGrads& grads, const GradSource& source,
                                         arithmetic_t<S> tile_grad, const bool& has_fast_path) {
  constexpr int N = kStep<S, kAccess>;
  constexpr Constant<GradSource::kOne> one;
  const auto gradients = [&](auto from) {
    return RowGradSource<arithmetic_t<S>, decltype(from)>(space, grads, from, tile_grad);
  };
  bool is_fast = kHasFast && has_fast_path && source == GradSource::kOne && is_whole<N>(tile);
  if constexpr (kHasFast) is_fast = is_fast && call.try_fast_tile(tile);
  if (!is_fast) {
    const auto begin = first_span<N, kAlwaysWhole<kAccess>>(tile);
    if constexpr (kServesRows) {
      auto rows = gradients(source);
      run_steps<S, kAccess, false>(call, begin, rows);
    } else {
      auto rows = gradients(one);
      run_steps<S, kAccess, false>(call, begin, rows);
    }
  } else if constexpr (kHasFast) {
    const auto begin = first_span<N, true>(tile);
    auto rows = gradients(one);
    run_steps<S, kAccess, true>(call, begin, rows);
  }
}

}  // namespace vae_fused::cuda
