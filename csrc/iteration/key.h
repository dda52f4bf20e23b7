// The noise key of a call, in the form in which kernels receive it.
#pragma once

#include "math/platform.h"

namespace vae_fused {

// The key (seed, offset) of the call, by value or by pointer. The pointers are for values on the
// device: a key tensor, or the state of a CUDA generator while a graph is captured. Each replay of
// the graph reads the current state.
//
//   seed   = seed_ptr ? *seed_ptr : seed
//   offset = ((offset_ptr ? *offset_ptr : 0) + offset) >> shift
//
// `shift` converts the offset of a CUDA generator, which counts 32-bit words, to an offset in
// Philox blocks of four words.
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
