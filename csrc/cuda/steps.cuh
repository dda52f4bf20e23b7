// The shape of every kernel: blocks go through tiles, threads through the steps of a tile. A family
// defines a call, which holds what the threads of a block share, and its step:
//
//   class Call {
//     template <bool kFast>
//     using Step = ...;
//     // Whether the fast path can compute a tile of whole steps. May prepare the call for it.
//     bool try_fast_tile(const Tile&);
//   };
//   class Step {
//     void load(const Call&, const Span&, const Rows&);  // issues every load of the step
//     void finish(const Call&, const Span&, Rows&);      // computes and stores
//   };
//
// A step decides what the values of its elements are. Rows takes them to sum them over rows, see
// RowSink in row_kernel.cuh, or gives it the gradients of such sums, see RowGradSource in
// row_grads.cuh. A step keeps no reference to its call, or nvcc would take more registers.
#pragma once

#include "cuda/tile.cuh"

namespace vae_fused::cuda {

// The steps of the calling thread in a tile, from `span` on.
template <typename S, Access kAccess, bool kFast, class Call, bool kWhole, class Rows>
__device__ __forceinline__ void run_steps(const Call& call, Span<kWhole> span, Rows& rows) {
  for (; span.slot < span.end; span = span + kThreads * kStep<S, kAccess>) {
    typename Call::template Step<kFast> step;
    step.load(call, span, rows);
    step.finish(call, span, rows);
    rows.end_step();
  }
}

}  // namespace vae_fused::cuda
