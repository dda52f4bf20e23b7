// The forward kernel computes the negative log-likelihood of every element and its sums over rows.
//
// Bytes per float element: 4 for each output, plus the size of a target element. The reduction adds
// 8 bytes per tile of a long row.
#pragma once

#include "cuda/likelihood/observations.cuh"
#include "cuda/likelihood/policy.cuh"
#include "cuda/likelihood/rows.cuh"

namespace vae_fused::cuda {
namespace {

// Returns the value of an element whose inputs are in shared memory.
template <class L, typename T>
__device__ __forceinline__ T value_at(const Observations& observations, const KernelOptions<T>& o,
                                      const Inputs<L, T>& inputs, int slot) {
  T x[L::kInputs];
  inputs_at(inputs, slot, x);
  T value = L::value(o, x);
  if constexpr (L::kIsCount) {
    if (is_count(o.kind) && x[kTarget<L>] != T(0)) value += inputs.added[slot];
  }
  if (observations.weight.data) value *= inputs.factor[slot];
  return observations.mask.data && !inputs.mask[slot] ? T(0) : value;
}

template <typename S, class L>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Direction::kForward, S, L>)
    nll_kernel(const __grid_constant__ NllParams p,
               const __grid_constant__ KernelOptions<arithmetic_t<S>> o,
               const __grid_constant__ RowDisposition disposition,
               const __grid_constant__ bool vectors, int ticket) {
  using T = arithmetic_t<S>;
  __shared__ Inputs<L, T> inputs;
  clear_list(inputs);
  __syncthreads();
  RowTotals<T> totals(p.space, p.nll, disposition, inputs.in[0]);
  for (int64_t t = blockIdx.x; t < p.space.tiles; t += gridDim.x) {
    const Tile tile = tile_of(p.space, t);
    const int64_t end = tile.begin + tile.n;
    for (int64_t first = tile.begin; first < end; first += kSlots<T>) {
      const Piece piece = flat_piece<T>(first, end);
      stage<L, S>(p, vectors, piece, inputs);
      if constexpr (L::kIsCount) {
        if (is_count(o.kind)) {
          add_counts(p.observations, piece, inputs,
                     [&](const T(&x)[L::kInputs], int) { return L::count_term(o, x); });
        }
      }
      for_each_slot<T>(piece, [&](int slot) {
        totals.add(piece, slot, value_at(p.observations, o, inputs, slot));
      });
      totals.end_piece();
      __syncthreads();
    }
    totals.end_tile(t);
  }
  totals.end_block(ticket, p.kl);
}

}  // namespace

template <typename S>
cudaError_t nll_as(NllParams p, cudaStream_t stream) {
  using T = arithmetic_t<S>;
  const bool vectors = has_vectors<S>(p.space, operands_of(p));
  RowPlan plan;
  cudaError_t error = plan_row_sums<T>(p.space, p.nll, p.kl, stream, plan);
  if (error != cudaSuccess) return error;
  const auto options = kernel_options<T>(p.observations);
  error = launch_with_kind(p.observations.kind, [&](auto kind) {
    return launch(nll_kernel<S, KernelKind<S, decltype(kind)>>, plan.blocks, stream, p, options,
                  plan.disposition, vectors, plan.ticket);
  });
  if (error != cudaSuccess) return error;
  const RowEpilogue epilogue{p.space.rows, parts_of(p.space), p.nll, p.kl};
  return launch_epilogue(p.dtype, epilogue, plan.ticket, stream);
}

}  // namespace vae_fused::cuda
