// The double-precision kernels call the math library often. When its functions were inlined, they
// took 480 KB on sm_120.
#define VAE_FUSED_LIBM_OUT_OF_LINE

#include "cuda/likelihood/backward.cuh"
#include "cuda/likelihood/forward.cuh"
#include "cuda/likelihood/instances.cuh"

namespace vae_fused::cuda {

VAE_FUSED_NLL_INSTANCES(double)
template cudaError_t nll_and_backward_as<double>(NllBackwardParams, cudaStream_t);

}  // namespace vae_fused::cuda
