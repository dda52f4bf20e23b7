// The kernels of each dtype are compiled in a separate file, so that a build uses all cores.
#pragma once

#include "cuda/launch.cuh"
#include "math/storage.h"
#include "params/likelihood.h"

namespace vae_fused::cuda {

template <typename S>
cudaError_t nll_as(NllParams p, cudaStream_t stream);
template <typename S>
cudaError_t nll_backward_as(NllBackwardParams p, cudaStream_t stream);
template <typename S>
cudaError_t nll_and_backward_as(NllBackwardParams p, cudaStream_t stream);
template <typename S>
cudaError_t softmax_dot_as(NllBackwardParams p, cudaStream_t stream);

// Whether there are kernels that compute the loss and its gradients together. In half precision,
// such gradients would underflow, because no GradScaler has scaled them.
template <typename S>
constexpr bool kHasValues = !std::is_same_v<S, math::Half>;

#define VAE_FUSED_NLL_INSTANCES(S)                                          \
  template cudaError_t nll_as<S>(NllParams, cudaStream_t);                  \
  template cudaError_t nll_backward_as<S>(NllBackwardParams, cudaStream_t); \
  template cudaError_t softmax_dot_as<S>(NllBackwardParams, cudaStream_t);

}  // namespace vae_fused::cuda
