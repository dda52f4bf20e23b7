// The tile code for the baseline of each architecture: SSE2 on x86-64, NEON on Arm.
#include "cpu/latent/stats_tasks.h"
#include "cpu/noise.h"

#define VAE_FUSED_TARGET baseline
#define VAE_FUSED_VECTOR_BYTES 16
#include "cpu/latent/backward_tile.h"
#include "cpu/latent/forward_tile.h"
#include "cpu/latent/stats_tile.h"
