// Converts a generator to an RngKey. Only this file depends on how torch stores generator states.
#pragma once

#include <optional>

#include "iteration/key.h"
#include "torch/tensor.h"

namespace vae_fused {

// Returns the number of blocks of noise for the elements of a tensor.
int64_t noise_blocks(const Tensor& t);

// Reserves a key for `blocks` blocks of noise on `device`. It advances the generator (by default
// the device's generator), so that no other draw by torch overlaps these blocks.
RngKey reserve_key(const OptionalGenerator& generator, at::Device device, int64_t blocks);

// Returns the key stored in a uint64 or int64 tensor of two elements. The tensor is read where the
// kernel runs.
RngKey key_of(const Tensor& key);

}  // namespace vae_fused
