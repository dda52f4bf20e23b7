// The list of variants, and the host's part of their launch: tiles, grid and the second launch.
#include <algorithm>

#include "variants.cuh"
#include "variants.h"

namespace vae_fused::probe {
namespace {

__global__ void __launch_bounds__(kThreads)
    ab_combine_kernel(const __grid_constant__ VariantArgs p) {
  combine(p);
}

}  // namespace

const char* name_of(Keys keys) {
  constexpr const char* kNames[] = {"registers", "shared", "parameters"};
  return kNames[static_cast<int>(keys)];
}

const char* name_of(Loads loads) {
  constexpr const char* kNames[] = {"plain", "once", "prefetch", "ring"};
  return kNames[static_cast<int>(loads)];
}

const char* name_of(Ticket ticket) {
  constexpr const char* kNames[] = {"fences", "acq_rel", "second launch"};
  return kNames[static_cast<int>(ticket)];
}

const char* name_of(Grid grid) { return grid == Grid::kMerged ? "merged" : "persistent"; }

std::string Variant::name() const {
  return std::string("keys ") + name_of(keys) + ", loads " + name_of(loads) + ", " +
         std::to_string(blocks) + " blocks";
}

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = [] {
    std::vector<Variant> both = forward_variants();
    const std::vector<Variant> backward = backward_variants();
    both.insert(both.end(), backward.begin(), backward.end());
    return both;
  }();
  return all;
}

int launch(const Variant& variant, const VariantCall& call, const Sizes& sizes,
           cudaStream_t stream) {
  const int64_t element = call.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t merged = (call.elements / kTile - 1) / sizes.enough_blocks + 1;
  const bool persistent = call.grid == Grid::kPersistent;
  const int64_t tile = persistent ? sizes.persistent_tile : kTile * merged;
  const uint64_t last = call.offset + static_cast<uint64_t>(call.elements) / kChunk;
  if (call.elements % kTile != 0 || call.elements * element > int64_t{1} << 30 ||
      call.offset >> 32 != last >> 32) {
    return cudaErrorInvalidValue;
  }
  VariantArgs args;
  args.of = call.of;
  args.bytes = static_cast<uint32_t>(call.elements * element);
  args.tile_bytes = static_cast<uint32_t>(tile * element);
  args.tiles = static_cast<uint32_t>((call.elements - 1) / tile + 1);
  args.low = static_cast<uint32_t>(call.offset);
  args.high = static_cast<uint32_t>(call.offset >> 32);
  args.seed = call.seed;
  const math::Seed seed(call.wrong_key ? call.seed + 1 : call.seed);
  for (int r = 0; r < math::kRounds; ++r) {
    args.keys.k[r][0] = seed.first(static_cast<uint32_t>(r));
    args.keys.k[r][1] = seed.second(static_cast<uint32_t>(r));
  }
  if (call.wrong_key) ++args.seed;
  args.kl_scale = call.kl_scale;
  args.grad_kl = call.grad_kl;
  args.kl = call.kl;
  args.partials = call.partials;
  args.counter = call.counter;
  args.ticket = call.ticket;
  const int64_t resident = int64_t{sizes.sms} * variant.blocks;
  const int64_t blocks = persistent ? std::min<int64_t>(args.tiles, resident) : args.tiles;
  const int error = variant.launch(args, blocks, stream);
  if (error != 0 || variant.direction == Direction::kBackward) return error;
  if (call.ticket != Ticket::kSecondLaunch) return error;
  return cuda::launch(ab_combine_kernel, 1, stream, args);
}

}  // namespace vae_fused::probe
