// The emulated CUDA device. This folder shadows the toolkit's headers: a .cu file that includes
// <cuda_runtime.h> gets this file when the host compiler builds it. Kernels compile unchanged with
//
//   g++ -x c++ -DVAE_FUSED_EMULATOR -I tests/emulator/include -I csrc kernel.cu
//
// and run on the CPU. The threads of a block are fibers, which run in a seeded random order between
// barriers and never in lockstep. Blocks run one after another in a seeded shuffled order. Only the
// features that kernels need are implemented. Deliberate differences from a real device:
//
//   - a deadlock, a divergent barrier or a shuffle from an absent lane is a fault with a report
//   - __activemask() returns the calling lane alone, which is all that a device guarantees
//   - shared memory keeps the contents that the previous block left there
//   - dynamic shared memory, textures and device-side launches do not exist
#pragma once

#include "emu/device.h"
#include "emu/host.h"
#include "emu/types.h"
#include "emu/warp.h"
