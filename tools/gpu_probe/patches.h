// Variants for channels_last: a step is a patch of 4 channels by 4 pixels, four whole blocks of
// noise, where the shipped kernels take 2 channels by 4 pixels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "variants.h"

namespace vae_fused::probe {

struct PatchArgs {
  VariantArgs common;  // tile_bytes counts patches
  uint32_t patches = 0;
  uint32_t channels = 0, groups = 0;  // groups of four channels
  uint32_t pixel_blocks = 0;          // of four pixels, of an image
  DivisorOf<uint32_t> by_groups, by_pixel_blocks;
};

struct PatchVariant {
  Direction direction;
  DType dtype;
  bool four_channels;  // the tensor has just four, and two threads exchange halves to store sectors
  int blocks;          // per SM, in __launch_bounds__
  int (*launch)(const PatchArgs& args, int64_t blocks, cudaStream_t stream);
  KernelCost (*cost)();

  std::string name() const;
};

const std::vector<PatchVariant>& patch_variants();

// The tensors of `call` are [images, channels, pixels] in channels_last. Pixels and channels must
// be multiples of 4, and elements a multiple of 2^12, so that every thread of a warp has a patch.
// Returns a cudaError_t.
int launch(const PatchVariant& variant, const VariantCall& call, int64_t channels, int64_t pixels,
           const Sizes& sizes, cudaStream_t stream);

}  // namespace vae_fused::probe
