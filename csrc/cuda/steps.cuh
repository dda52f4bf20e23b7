// The structure of every kernel: thread blocks iterate over tiles, and threads iterate over the
// steps of a tile. A family defines a call, which holds the state that the threads of a block
// share, and the call's step:
//
//   class Call {
//     template <bool kFast>
//     using Step = ...;
//     // Returns whether the fast path can compute a tile of whole steps. May prepare the call.
//     bool try_fast_tile(const Tile&);
//   };
//   class Step {
//     void load(const Call&, const Span&, const Rows&);  // issues every load of the step
//     void finish(const Call&, const Span&, Rows&);      // computes and stores
//   };
//
// A step computes the values of its elements. Rows is either a RowSink (row_kernel.cuh), which sums
// these values over rows, or a RowGradSource (row_grads.cuh), which returns the gradients of such
// sums. A step keeps no reference to its call, because nvcc would use more registers for it.
#pragma once

#include "cuda/tile.cuh"

namespace vae_fused::cuda {

// Runs the calling thread's steps in a tile, from `span` on.
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
