// The bandwidth section: a list of contests in the order of what they tell, as many as the time
// allows. A contest's rows are written before the next one begins.
#include <algorithm>

#include "contenders.h"
#include "sections.h"

namespace vae_fused::probe {
namespace {

struct Contest {
  SceneSpec spec;
  Field field;
  Mode mode = Mode::kStream;

  std::string name() const {
    return spec.name() + ", " + name_of(field) + (mode == Mode::kGraph ? ", graph" : "");
  }
};

constexpr Direction kForward = Direction::kForward, kBackward = Direction::kBackward;
constexpr DType kFloat = DType::kFloat32, kHalf = DType::kFloat16, kBFloat = DType::kBFloat16;

// The calls that stand first in every list.
template <typename Visit>
void each_headline(const Visit& visit) {
  visit(kForward, kBFloat);
  visit(kForward, kFloat);
  visit(kBackward, kBFloat);
  visit(kBackward, kFloat);
}

std::vector<Contest> all_contests() {
  std::vector<Contest> all;
  const auto add = [&](Direction d, DType t, View view, int log2, Field field,
                       Mode mode = Mode::kStream) {
    all.push_back({{d, t, view, log2}, field, mode});
  };
  const auto plain = [&](int log2, Field field, Mode mode = Mode::kStream) {
    each_headline([&](Direction d, DType t) { add(d, t, View::kContiguous, log2, field, mode); });
  };
  const auto views = [&](DType t, int log2) {
    for (const View view : {View::kChunked, View::kChannelsLast4, View::kRows256,
                            View::kChannelsLastChunk, View::kChannelsLast64}) {
      for (const Direction d : {kForward, kBackward}) add(d, t, view, log2, Field::kShipped);
    }
  };
  plain(24, Field::kRoofs);
  plain(24, Field::kKeys);
  views(kBFloat, 24);
  plain(24, Field::kLoads);
  plain(24, Field::kGrid);
  for (const View view : {View::kChannelsLast4, View::kChannelsLast64}) {
    each_headline([&](Direction d, DType t) { add(d, t, view, 24, Field::kPatches); });
  }
  plain(26, Field::kShipped);
  for (const int log2 : {22, 20}) {
    plain(log2, Field::kShipped, Mode::kGraph);
    plain(log2, Field::kShipped);
  }
  for (const int log2 : {20, 22, 24}) {
    for (const DType t : {kBFloat, kFloat}) {
      const Mode mode = log2 < 24 ? Mode::kGraph : Mode::kStream;
      add(kForward, t, View::kContiguous, log2, Field::kTickets, mode);
    }
  }
  views(kFloat, 24);
  add(kForward, kHalf, View::kContiguous, 24, Field::kShipped);
  add(kBackward, kHalf, View::kContiguous, 24, Field::kShipped);
  for (const Field field : {Field::kKeys, Field::kLoads, Field::kGrid}) plain(26, field);
  for (const Field field : {Field::kKeys, Field::kLoads, Field::kGrid}) {
    plain(22, field, Mode::kGraph);
  }
  for (const Field field : {Field::kRoofs, Field::kKeys, Field::kLoads, Field::kGrid}) {
    plain(20, field, Mode::kGraph);
  }
  plain(26, Field::kRoofs);
  return all;
}

// Every kind of contest once for each of its directions and dtypes, in tensors of 2^14 elements.
std::vector<Contest> tiny_contests() {
  std::vector<Contest> tiny;
  for (Contest contest : all_contests()) {
    contest.spec.log2_elements = 14;
    const bool is_new = std::none_of(tiny.begin(), tiny.end(), [&](const Contest& other) {
      return other.name() == contest.name();
    });
    if (is_new) tiny.push_back(contest);
  }
  return tiny;
}

std::vector<double> ratios(const std::vector<double>& of, const std::vector<double>& to) {
  std::vector<double> all;
  for (size_t i = 0; i < of.size(); ++i) all.push_back(of[i] / to[i]);
  return all;
}

// The contender of a group with the least median time.
const std::vector<double>& fastest(const std::vector<Contender>& contenders,
                                   const std::vector<std::vector<double>>& times,
                                   const std::string& group) {
  size_t best = contenders.size();
  for (size_t k = 0; k < contenders.size(); ++k) {
    if (contenders[k].group != group) continue;
    if (best == contenders.size() || median(times[k]) < median(times[best])) best = k;
  }
  return times.at(best);
}

Row row_of(const Contest& contest, const Contender& contender, int sets) {
  const SceneSpec& spec = contest.spec;
  Row row("bandwidth");
  row.add("case", spec.name())
      .add("contest", name_of(contest.field))
      .add("contender", contender.name)
      .add("group", contender.group)
      .add("direction", spec.forward() ? "forward" : "backward")
      .add("dtype", name_of(spec.dtype))
      .add("view", name_of(spec.view))
      .add("log2_elements", spec.log2_elements)
      .add("mode", contest.mode == Mode::kGraph ? "graph" : "stream")
      .add("bytes", spec.bytes())
      .add("sets", sets);
  contender.describe(row);
  return row;
}

class Runner {
 public:
  Runner(const Settings& settings, Report& report) : settings_(settings), report_(report) {}

  void run(const Contest& contest) {
    if (!scene_ || scene_->spec().name() != contest.spec.name()) {
      scene_.reset();  // its memory is free before the next one's is taken
      scene_ = std::make_unique<Scene>(contest.spec, settings_.device, settings_.sizes(),
                                       settings_.faults.variant);
    }
    const std::vector<Contender> contenders = checked(contest);
    std::vector<Launch> launches;
    for (const Contender& c : contenders) launches.push_back(c.launch);
    const auto spacer = [&](cudaStream_t stream) { return scene_->launch_spacer(stream); };
    const Racing racing{stream_,           contest.mode,
                        scene_->timed_sets(), kSeconds,
                        settings_.tiny ? 1 : 9, settings_.tiny ? 1 : 41,
                        spacer};
    const auto times = race(launches, racing);
    for (size_t k = 0; k < contenders.size(); ++k) {
      write(contest, contenders, times, k);
    }
  }

 private:
  static constexpr double kSeconds = 0.4;  // of a contest, as soon as it has 9 rounds

  // Those whose results are right; a row says of the others that they are not.
  std::vector<Contender> checked(const Contest& contest) {
    std::vector<Contender> right;
    for (const Contender& c : contenders_of(*scene_, contest.field)) {
      Row row = row_of(contest, c, scene_->timed_sets());
      if (!c.verify || c.verify(row)) {
        right.push_back(c);
        continue;
      }
      report_.check(row, false, contest.name() + ": " + c.name + " computes wrong results");
    }
    return right;
  }

  void write(const Contest& contest, const std::vector<Contender>& contenders,
             const std::vector<std::vector<double>>& times, size_t k) {
    const double us = median(times[k]);
    const double gb_s = static_cast<double>(contest.spec.bytes()) / us * 1e-3;
    const double of_copy = median(ratios(fastest(contenders, times, "copy"), times[k]));
    const double of_roof = median(ratios(fastest(contenders, times, "roof"), times[k]));
    Row row = row_of(contest, contenders[k], scene_->timed_sets());
    row.add("rounds", times[k].size())
        .add("us", us)
        .add("us_least", *std::min_element(times[k].begin(), times[k].end()))
        .add("us_spread", spread(times[k]))
        .add("gb_s", gb_s)
        .add("share_of_copy", of_copy)
        .add("share_of_roof", of_roof);
    if (contenders[k].verify) contenders[k].verify(row);
    char text[160];
    std::snprintf(text, sizeof text, "%9.2f us %6.0f GB/s  copy %.3f  roof %.3f  %s", us, gb_s,
                  of_copy, of_roof, contenders[k].name.c_str());
    report_.check(row, std::isfinite(us) && us > 0, contest.name() + ": " + text);
  }

  const Settings& settings_;
  Report& report_;
  Stream stream_;
  std::unique_ptr<Scene> scene_;
};

// Brings the clocks up.
void warm_up(const Settings& settings) {
  const Clock clock;
  const SceneSpec spec{kForward, kFloat, View::kContiguous, settings.tiny ? 14 : 22};
  const Scene scene(spec, settings.device, settings.sizes(), false);
  do {
    for (int i = 0; i < (settings.tiny ? 1 : 100); ++i) {
      check(scene.launch_shipped(1 + i % scene.timed_sets(), nullptr), "warm-up");
    }
    check(cudaDeviceSynchronize(), "warm-up");
  } while (!settings.tiny && clock.seconds() < 0.3);
}

}  // namespace

void run_bandwidth(const Settings& settings, Report& report) {
  const Clock clock;
  if (!settings.list) warm_up(settings);
  Runner runner(settings, report);
  for (const Contest& contest : settings.tiny ? tiny_contests() : all_contests()) {
    const std::string name = contest.name();
    if (!settings.wants(name)) continue;
    if (settings.list) {
      std::printf("bandwidth: %s\n", name.c_str());
      continue;
    }
    if (clock.seconds() > settings.seconds) {
      ++report.skipped;
      report.write(Row("skipped").add("section", "bandwidth").add("case", name).add(
                       "reason", "out of time"),
                   "SKIP  " + name + ": out of time");
      continue;
    }
    try {
      runner.run(contest);
    } catch (const std::exception& error) {
      report.check(Row("bandwidth").add("case", name).add("error", error.what()), false,
                   name + ": " + error.what());
      cudaGetLastError();
      check(cudaDeviceSynchronize(), "the device after a failure");
    }
  }
}

}  // namespace vae_fused::probe
