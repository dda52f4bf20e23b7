// The tile code for the baseline of each architecture: SSE2 on x86-64, NEON on Arm.
#include "cpu/likelihood/tasks.h"
#include "cpu/noise.h"

#define VAE_FUSED_TARGET baseline
#define VAE_FUSED_VECTOR_BYTES 16
#include "cpu/likelihood/table.h"
