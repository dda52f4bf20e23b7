// The contenders of the bandwidth section: the shipped kernel, a copy, roofs and variants of one
// call. Each has a launch, a check of its results and the fields that describe it.
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
  // Adds its findings to the row and returns whether the results are right. Empty if nothing can be
  // checked.
  std::function<bool(Row&)> verify;
};

// The contenders that a contest compares.
enum class Lineup : int {
  kShipped,  // the shipped kernel, a copy and two roofs, which are in every other contest, too
  kRoofs,    // all roofs
  kKeys,     // where the round keys are, by blocks per SM
  kLoads,    // how tensors are read, by blocks per SM
  kGrid,     // a persistent grid with a variant's number of blocks per SM
  kTickets,  // how the last block is found
  kPatches,  // channels_last
};

const char* name_of(Lineup lineup);

// The contenders refer to the scene, which must outlive them.
std::vector<Contender> contenders_of(const Scene& scene, Lineup lineup);

}  // namespace vae_fused::probe
