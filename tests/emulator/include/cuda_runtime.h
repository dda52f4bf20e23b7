// The emulated CUDA device: what a .cu file gets for <cuda_runtime.h> when the host compiler builds
// it. This folder shadows the toolkit's headers, so kernels compile unchanged with
//
//   g++ -x c++ -DVAE_FUSED_EMULATOR -I tests/emulator/include -I csrc kernel.cu
//
// and run on the CPU: a block's threads are fibers, scheduled in a seeded random order between
// barriers and never in lockstep; blocks run one after another in a seeded shuffled order. What is
// not here, no kernel needs yet. What deliberately differs from a real device:
//
//   - a deadlock, a divergent barrier or a shuffle from an absent lane is a fault with a report
//   - __activemask() names the calling lane alone, which is all that a device promises
//   - shared memory holds what the block before it left there
//   - dynamic shared memory, textures and device-side launches do not exist
#pragma once

#include "emu/device.h"
#include "emu/host.h"
#include "emu/runtime.h"
#include "emu/types.h"
#include "emu/warp.h"
