// The contenders of each contest: see contenders.h.
#include "contenders.h"

namespace vae_fused::probe {
namespace {

void add(Row& row, const KernelCost& cost) {
  row.add("registers", cost.registers)
      .add("local_bytes", cost.local_bytes)
      .add("shared_bytes", cost.shared_bytes)
      .add("resident_blocks", cost.blocks_per_sm);
}

bool add(Row& row, const Agreement& agreement) {
  row.add("identical", agreement.identical)
      .add("max_error", agreement.worst.error)
      .add("kl_error", agreement.kl.error);
  return agreement.good();
}

Contender shipped(const Scene& scene) {
  return {"shipped", "shipped",
          [&](int set, cudaStream_t stream) { return scene.launch_shipped(set, stream); },
          [](Row&) {},
          [&](Row& row) {
            const Worst worst = scene.spot_check();
            row.add("max_error", worst.error);
            return worst.good();
          }};
}

Contender copy(const Scene& scene) {
  return {"copy",
          "copy",
          [&](int set, cudaStream_t stream) { return scene.launch_copy(set, stream); },
          [](Row&) {},
          {}};
}

Contender contender(const Scene& scene, const Roof& roof) {
  return {roof.name(),
          "roof",
          [&, roof](int set, cudaStream_t stream) { return scene.launch_roof(roof, set, stream); },
          [roof](Row& row) {
            row.add("vectors", roof.vectors).add("blocks", roof.blocks);
            row.add("bytes_in_flight", roof.bytes_in_flight());
            add(row, roof.cost());
          },
          {}};
}

Contender contender(const Scene& scene, const Variant& variant, Grid grid, Ticket ticket) {
  const Launch launch = [&scene, variant, grid, ticket](int set, cudaStream_t stream) {
    return scene.launch_variant(variant, grid, ticket, set, stream);
  };
  std::string name = variant.name();
  if (grid == Grid::kPersistent) name += ", persistent";
  if (ticket != Ticket::kAcquireRelease) name += std::string(", ") + name_of(ticket);
  return {name, "variant", launch,
          [=](Row& row) {
            row.add("keys", name_of(variant.keys))
                .add("loads", name_of(variant.loads))
                .add("blocks", variant.blocks)
                .add("grid", name_of(grid))
                .add("ticket", name_of(ticket));
            add(row, variant.cost());
          },
          [&scene, launch](Row& row) { return add(row, scene.agreement(launch)); }};
}

Contender contender(const Scene& scene, const PatchVariant& variant) {
  const Launch launch = [&scene, variant](int set, cudaStream_t stream) {
    return scene.launch_patches(variant, set, stream);
  };
  return {variant.name(), "variant", launch,
          [=](Row& row) {
            row.add("keys", "shared").add("loads", "plain").add("blocks", variant.blocks);
            add(row, variant.cost());
          },
          [&scene, launch](Row& row) { return add(row, scene.agreement(launch)); }};
}

// Whether a lineup includes a variant.
bool is_in(const Variant& variant, Lineup lineup) {
  switch (lineup) {
    case Lineup::kKeys:
      return variant.loads == Loads::kPlain;
    case Lineup::kLoads:
      return variant.loads != Loads::kPlain ||
             (variant.keys == Keys::kShared && variant.blocks == 4);
    case Lineup::kGrid:
      return true;
    default:
      return variant.keys == Keys::kShared && variant.loads == Loads::kPlain && variant.blocks == 4;
  }
}

}  // namespace

const char* name_of(Lineup lineup) {
  constexpr const char* kNames[] = {"shipped", "roofs",   "keys",   "loads",
                                    "grid",    "tickets", "patches"};
  return kNames[static_cast<int>(lineup)];
}

std::vector<Contender> contenders_of(const Scene& scene, Lineup lineup) {
  const SceneSpec& spec = scene.spec();
  std::vector<Contender> all = {shipped(scene), copy(scene)};
  const std::vector<Roof> roofs = probe::roofs(spec.reads());
  for (const Roof& roof : roofs) {
    const bool usual = roof.vectors == 1 && (roof.blocks == 0 || roof.blocks == 8);
    if (usual || lineup == Lineup::kRoofs) all.push_back(contender(scene, roof));
  }
  if (lineup == Lineup::kShipped || lineup == Lineup::kRoofs) return all;
  if (lineup == Lineup::kPatches) {
    for (const PatchVariant& variant : patch_variants()) {
      if (variant.direction != spec.direction || variant.dtype != spec.dtype) continue;
      if (variant.four_channels && spec.channels() != 4) continue;
      all.push_back(contender(scene, variant));
    }
    return all;
  }
  for (const Variant& variant : variants()) {
    if (variant.direction != spec.direction || variant.dtype != spec.dtype) continue;
    if (!is_in(variant, lineup)) continue;
    if (lineup == Lineup::kTickets) {
      for (const Ticket ticket :
           {Ticket::kFences, Ticket::kAcquireRelease, Ticket::kSecondLaunch}) {
        all.push_back(contender(scene, variant, Grid::kMerged, ticket));
      }
      continue;
    }
    const Grid grid = lineup == Lineup::kGrid ? Grid::kPersistent : Grid::kMerged;
    all.push_back(contender(scene, variant, grid, Ticket::kAcquireRelease));
  }
  return all;
}

}  // namespace vae_fused::probe
