// The key of a call's noise, as it reaches a kernel.
#pragma once

#include "math/platform.h"

namespace vae_fused {

// The key (seed, offset) of the call, by value or by pointer: a key tensor lives on the device, and
// so does the state of a CUDA generator during graph capture, of which each replay reads a new
// value.
//
//   seed   = seed_ptr ? *seed_ptr : seed
//   offset = ((offset_ptr ? *offset_ptr : 0) + offset) >> shift
//
// `shift` turns a CUDA generator's offset, counted in words, into Philox blocks of four.
struct RngKey {
  const uint64_t* seed_ptr = nullptr;
  const uint64_t* offset_ptr = nullptr;
  uint64_t seed = 0;
  uint64_t offset = 0;
  uint32_t shift = 0;
};

struct Key {
  uint64_t seed, offset;
};

VAE_FUSED_HD Key resolve(const RngKey& key) {
  return {key.seed_ptr ? *key.seed_ptr : key.seed,
          ((key.offset_ptr ? *key.offset_ptr : 0) + key.offset) >> key.shift};
}

}  // namespace vae_fused
