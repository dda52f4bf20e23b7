#include "cuda/likelihood/backward.cuh"
#include "cuda/likelihood/forward.cuh"
#include "cuda/likelihood/instances.cuh"

namespace vae_fused::cuda {

VAE_FUSED_NLL_INSTANCES(math::BFloat16)
template cudaError_t nll_and_backward_as<math::BFloat16>(NllBackwardParams, cudaStream_t);

}  // namespace vae_fused::cuda
