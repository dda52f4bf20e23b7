// From a call for statistics to its tasks.
#pragma once

#include "cpu/latent/tasks.h"
#include "params/latent_stats.h"

namespace vae_fused::cpu {

// The context of a task's body: the call, and its Gaussians as the forward kernel takes them.
struct StatsTask {
  const StatsParams& params;
  ForwardParams forward;
  math::LatentOptions<float> options;

  explicit StatsTask(const StatsParams& params)
      : params(params), options(math::narrowed<float>(params.of.options)) {
    forward.dtype = params.dtype;
    forward.space = params.space;
    forward.of = params.of;
    forward.kl.data = params.kl;  // asks for the KL of each element
  }

  VAE_FUSED_HD const math::LatentOptions<float>& options_of(float) const { return options; }
  VAE_FUSED_HD const math::LatentOptions<double>& options_of(double) const {
    return params.of.options;
  }
};

VAE_FUSED_ISA_TABLE(LatentBodies, kStats)

}  // namespace vae_fused::cpu
