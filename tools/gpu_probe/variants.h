// The variants of the contiguous kernels that the probe times beside the shipped ones. This header
// defines how they differ and how to launch one; variants.cuh contains the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "device.h"
#include "math/philox.h"
#include "params/latent.h"

namespace vae_fused::probe {

enum class Direction : int { kForward, kBackward };

// Where the 20 round keys of Philox are during the loop.
enum class Keys : int { kRegisters, kShared, kParameters };

// How a thread reads the tensors.
enum class Loads : int {
  kPlain,     // the vectors of a step at its beginning
  kOnce,      // the same past the L1 cache (ld.global.nc.L1::no_allocate)
  kPrefetch,  // the vectors of the next step before the arithmetic of this one, in registers
  kRing,      // asynchronous copies into shared memory, two steps ahead
};

// How a launch finds its last block, which adds up the sums of all tiles.
enum class Ticket : int {
  kFences,          // fence, atomicInc, fence
  kAcquireRelease,  // one atom.acq_rel.gpu.inc
  kSecondLaunch,    // a second kernel adds up the sums
};

enum class Grid : int {
  kMerged,      // a block per tile, tiles as the shipped kernels merge them
  kPersistent,  // as many blocks as are resident, which go through tiles of 8192 elements
};

const char* name_of(Keys keys);
const char* name_of(Loads loads);
const char* name_of(Ticket ticket);
const char* name_of(Grid grid);

// The tensors of a contiguous call: mu, raw and grad_z, then z, or the gradients of mu and raw.
struct Streams {
  const char* in[3] = {};
  char* out[2] = {};
};

// What all variants share. Sizes are bytes of one tensor; a tensor has at most 2^31.
struct VariantArgs {
  Streams of;
  uint32_t bytes = 0, tile_bytes = 0, tiles = 0;
  uint32_t low = 0, high = 0;  // the counter of the first block of noise
  uint64_t seed = 0;
  math::RoundKeys keys;
  float kl_scale = 1;
  const float* grad_kl = nullptr;  // [1], backward
  float* kl = nullptr;             // [1], forward, as the next two
  double* partials = nullptr;      // [tiles]
  unsigned int* counter = nullptr;
  Ticket ticket = Ticket::kAcquireRelease;
};

struct VariantCall {
  Streams of;
  DType dtype;
  int64_t elements;  // a multiple of kTile
  uint64_t seed, offset;
  float kl_scale;
  const float* grad_kl;
  float* kl;
  double* partials;
  unsigned int* counter;
  Grid grid;
  Ticket ticket;
  bool wrong_key;  // a planted fault
};

// The parameters of a launch besides its call: the number of multiprocessors, the number of blocks
// from which on tiles are merged, and the elements of a tile of a persistent grid.
struct Sizes {
  int sms;
  int64_t enough_blocks;
  int64_t persistent_tile;
};

struct Variant {
  Direction direction;
  DType dtype;
  Keys keys;
  Loads loads;
  // The blocks per SM in __launch_bounds__. Registers allow at least this many. A persistent grid
  // has exactly this many.
  int blocks;
  int (*launch)(const VariantArgs& args, int64_t blocks, cudaStream_t stream);
  KernelCost (*cost)();

  std::string name() const;
};

const std::vector<Variant>& variants();
std::vector<Variant> forward_variants();
std::vector<Variant> backward_variants();

// Returns a cudaError_t. The variants compute in float.
int launch(const Variant& variant, const VariantCall& call, const Sizes& sizes,
           cudaStream_t stream);

}  // namespace vae_fused::probe
