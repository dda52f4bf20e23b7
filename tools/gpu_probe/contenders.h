// What competes in a contest of the bandwidth section: the shipped kernel, a copy, roofs and
// variants of one call, each with a launch, a check and the fields that describe it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "contest.h"
#include "report.h"
#include "scene.h"

namespace vae_fused::probe {

struct Contender {
  std::string name, group;  // shipped | copy | roof | variant
  Launch launch;
  std::function<void(Row&)> describe;
  // Adds its findings to the row and returns whether the results are right; empty: there are none.
  std::function<bool(Row&)> verify;
};

// A contest: one call, and which of its contenders run in turn.
enum class Lineup : int {
  kShipped,  // the shipped kernel, a copy and two roofs, which are in every other contest, too
  kRoofs,    // all roofs
  kKeys,     // where the round keys are, by blocks per SM
  kLoads,    // how tensors are read, by blocks per SM
  kGrid,     // a persistent grid, for all variants of 4 blocks per SM
  kTickets,  // how the last block is found
  kPatches,  // channels_last
};

const char* name_of(Lineup lineup);

// The scene has to outlive them.
std::vector<Contender> contenders_of(const Scene& scene, Lineup lineup);

}  // namespace vae_fused::probe
