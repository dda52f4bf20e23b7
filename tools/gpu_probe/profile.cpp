// The profile section launches eight headline kernels and nothing else, for a profiler. It measures
// nothing itself.
#include "scene.h"
#include "sections.h"

namespace vae_fused::probe {

void run_profile(const Settings& settings, Report& report) {
  constexpr Direction kForward = Direction::kForward, kBackward = Direction::kBackward;
  constexpr DType kFloat = DType::kFloat32, kBFloat = DType::kBFloat16;
  const int log2 = settings.tiny ? 14 : 24;
  const SceneSpec specs[] = {
      {kForward, kBFloat, View::kContiguous, log2},
      {kForward, kFloat, View::kContiguous, log2},
      {kBackward, kBFloat, View::kContiguous, log2},
      {kBackward, kFloat, View::kContiguous, log2},
      {kForward, kBFloat, View::kChunked, log2},
      {kForward, kBFloat, View::kChannelsLast4, log2},
      {kBackward, kBFloat, View::kChunked, log2},
      {kForward, kBFloat, View::kRows256, log2},
  };
  constexpr int kLaunches = 4;  // a warm-up, which the scene makes itself, and three
  for (const SceneSpec& spec : specs) {
    const std::string name = spec.name();
    if (!settings.wants(name)) continue;
    if (settings.list) {
      std::printf("profile: %s\n", name.c_str());
      continue;
    }
    const Scene scene(spec, settings.device, settings.sizes(), false);
    for (int i = 1; i < kLaunches; ++i) {
      check(scene.launch_shipped(1 + i % scene.timed_sets(), nullptr), "launch");
    }
    check(cudaDeviceSynchronize(), "launches");
    Row row("profile");
    row.add("case", name).add("bytes", spec.bytes()).add("launches", kLaunches);
    report.check(row, true, "profile: " + name);
  }
}

}  // namespace vae_fused::probe
