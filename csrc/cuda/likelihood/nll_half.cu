#include "cuda/likelihood/backward.cuh"
#include "cuda/likelihood/forward.cuh"
#include "cuda/likelihood/instances.cuh"

namespace vae_fused::cuda {

VAE_FUSED_NLL_INSTANCES(math::Half)

}  // namespace vae_fused::cuda
