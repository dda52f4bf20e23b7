#include "cuda/likelihood/backward.cuh"
#include "cuda/likelihood/forward.cuh"
#include "cuda/likelihood/instances.cuh"

namespace vae_fused::cuda {

VAE_FUSED_NLL_INSTANCES(float)
template cudaError_t nll_and_backward_as<float>(NllBackwardParams, cudaStream_t);

}  // namespace vae_fused::cuda
