// Generator -> RngKey: the only place that knows how torch keeps the state of its generators.
#pragma once

#include <optional>

#include "iteration/key.h"
#include "torch/tensor.h"

namespace vae_fused {

// The blocks of noise that a tensor's elements take.
int64_t noise_blocks(const Tensor& t);

// Reserves a key for the draw of `blocks` of noise on `device`, advancing the generator (the
// device's default one if none is given) so that no other torch draw overlaps it.
RngKey reserve_key(const OptionalGenerator& generator, at::Device device, int64_t blocks);

// The key held by a uint64 or int64 tensor of two elements, read where the kernel runs.
RngKey key_of(const Tensor& key);

}  // namespace vae_fused
