// Converts a generator to an RngKey. Only this file depends on how torch stores generator states.
#pragma once

#include <optional>

#include "iteration/key.h"
#include "torch/tensor.h"

namespace vae_fused {

// The number of blocks of noise for the elements of a tensor.
int64_t noise_blocks(const Tensor& t);

// Reserves a key for `blocks` blocks of noise on `device`. It advances the generator (by default
// that of the device), so that no other draw of torch overlaps them.
RngKey reserve_key(const OptionalGenerator& generator, at::Device device, int64_t blocks);

// The key stored in a uint64 or int64 tensor of two elements, which is read where the kernel runs.
RngKey key_of(const Tensor& key);

}  // namespace vae_fused
