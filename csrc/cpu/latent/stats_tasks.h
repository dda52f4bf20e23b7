// Maps a statistics call to its tasks.
#pragma once

#include "cpu/latent/tasks.h"
#include "params/latent_stats.h"

namespace vae_fused::cpu {

// The context of a task's body: the call, and a forward call with the same Gaussians.
struct StatsTask {
  const StatsParams& params;
  const ForwardParams forward;
  const Task<ForwardParams> forward_task;

  explicit StatsTask(const StatsParams& params)
      : params(params), forward(forward_of(params)), forward_task(forward, Key{}) {}

 private:
  static ForwardParams forward_of(const StatsParams& params) {
    ForwardParams forward;
    forward.dtype = params.dtype;
    forward.space = params.space;
    forward.gaussians = params.gaussians;
    forward.kl.data = params.kl;  // requests the KL of each element
    return forward;
  }
};

VAE_FUSED_ISA_TABLE(LatentBodies, kStats)

}  // namespace vae_fused::cpu
