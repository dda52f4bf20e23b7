// The minimum number of 256-thread blocks per SM for each kernel of the family. With 4, 3, 2 or 1
// blocks, a thread has 64, 80, 128 or 255 registers, respectively. With one more block, a kernel
// would spill on some architecture.
#pragma once

#include "cuda/likelihood/kinds.cuh"

namespace vae_fused::cuda {

// kBoth computes values and gradients in one pass.
enum class Direction { kForward, kBackward, kBoth };

constexpr Direction direction_of(bool with_values) {
  return with_values ? Direction::kBoth : Direction::kBackward;
}

// Whether these are the 16-bit kernels for a zero-inflated negative binomial. With three blocks,
// these kernels would spill on sm_75.
template <typename S, class L>
constexpr bool kIsLargest = sizeof(S) == 2 && L::kInputs == 4;

// Whether forward kernels have a minimum of four blocks. With four blocks, kernels with four inputs
// would spill. The 16-bit kernels with a mean and a scale would also spill, because the words of
// all outputs stay in registers until the last load is issued.
template <typename S, class L>
constexpr bool kIsSmall = L::kInputs < 3 || (L::kInputs == 3 && (sizeof(S) > 2 || L::kIsCount));

template <Direction kDirection, typename S, class L>
constexpr int kMinBlocks = sizeof(S) == 8                      ? 1
                           : kDirection == Direction::kForward ? (kIsSmall<S, L> ? 4 : 3)
                           : kDirection == Direction::kBoth    ? 2
                                                               : (kIsLargest<S, L> ? 2 : 3);

}  // namespace vae_fused::cuda
