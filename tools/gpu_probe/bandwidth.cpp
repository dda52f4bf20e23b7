// The bandwidth section runs as many contests as the time allows, the most informative ones first.
// The rows of a contest are written before the next one begins.
#include <algorithm>

#include "contenders.h"
#include "sections.h"

namespace vae_fused::probe {
namespace {

struct Contest {
  SceneSpec spec;
  Lineup lineup;
  Mode mode = Mode::kStream;

  std::string name() const {
    return spec.name() + ", " + name_of(lineup) + (mode == Mode::kGraph ? ", graph" : "");
  }
};

constexpr Direction kForward = Direction::kForward, kBackward = Direction::kBackward;
constexpr DType kFloat = DType::kFloat32, kHalf = DType::kFloat16, kBFloat = DType::kBFloat16;

// The calls that matter most, in this order.
template <typename Visit>
void each_headline(const Visit& visit) {
  visit(kForward, kBFloat);
  visit(kForward, kFloat);
  visit(kBackward, kBFloat);
  visit(kBackward, kFloat);
}

std::vector<Contest> all_contests() {
  std::vector<Contest> all;
  const auto add = [&](Direction d, DType t, View view, int log2, Lineup lineup,
                       Mode mode = Mode::kStream) {
    all.push_back({{d, t, view, log2}, lineup, mode});
  };
  const auto plain = [&](int log2, Lineup lineup, Mode mode = Mode::kStream) {
    each_headline([&](Direction d, DType t) { add(d, t, View::kContiguous, log2, lineup, mode); });
  };
  const auto views = [&](DType t, int log2) {
    for (const View view : {View::kChunked, View::kChannelsLast4, View::kRows256,
                            View::kChannelsLastChunk, View::kChannelsLast64}) {
      for (const Direction d : {kForward, kBackward}) add(d, t, view, log2, Lineup::kShipped);
    }
  };
  plain(24, Lineup::kRoofs);
  plain(24, Lineup::kKeys);
  views(kBFloat, 24);
  plain(24, Lineup::kLoads);
  plain(24, Lineup::kGrid);
  for (const View view : {View::kChannelsLast4, View::kChannelsLast64}) {
    each_headline([&](Direction d, DType t) { add(d, t, view, 24, Lineup::kPatches); });
  }
  plain(26, Lineup::kShipped);
  for (const int log2 : {22, 20}) {
    plain(log2, Lineup::kShipped, Mode::kGraph);
    plain(log2, Lineup::kShipped);
  }
  for (const int log2 : {20, 22, 24}) {
    for (const DType t : {kBFloat, kFloat}) {
      const Mode mode = log2 < 24 ? Mode::kGraph : Mode::kStream;
      add(kForward, t, View::kContiguous, log2, Lineup::kTickets, mode);
    }
  }
  views(kFloat, 24);
  add(kForward, kHalf, View::kContiguous, 24, Lineup::kShipped);
  add(kBackward, kHalf, View::kContiguous, 24, Lineup::kShipped);
  for (const Lineup lineup : {Lineup::kKeys, Lineup::kLoads, Lineup::kGrid}) plain(26, lineup);
  for (const Lineup lineup : {Lineup::kKeys, Lineup::kLoads, Lineup::kGrid}) {
    plain(22, lineup, Mode::kGraph);
  }
  for (const Lineup lineup : {Lineup::kRoofs, Lineup::kKeys, Lineup::kLoads, Lineup::kGrid}) {
    plain(20, lineup, Mode::kGraph);
  }
  plain(26, Lineup::kRoofs);
  return all;
}

// The same contests with tensors of 2^14 elements, each once.
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

Row row_of(const Contest& contest, const Contender& contender, int sets) {
  const SceneSpec& spec = contest.spec;
  Row row("bandwidth");
  row.add("case", spec.name())
      .add("contest", name_of(contest.lineup))
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
      scene_.reset();  // frees its memory before the next allocation
      scene_ = std::make_unique<Scene>(contest.spec, settings_.device, settings_.sizes(),
                                       settings_.faults.variant);
    }
    std::vector<Entry> entries = checked(contest);
    std::vector<Launch> launches;
    for (const Entry& entry : entries) launches.push_back(entry.contender.launch);
    const auto times = race(launches, racing(contest));
    for (size_t k = 0; k < entries.size(); ++k) write(contest, entries, times, k);
  }

 private:
  struct Entry {
    Contender contender;
    Row row;
  };

  // A contest ends after 0.3 s, but not before it has 9 rounds. A batch moves at least 20 times
  // what the L2 cache holds, so that the contents of the cache at its ends hardly matter.
  Racing racing(const Contest& contest) const {
    const bool tiny = settings_.tiny;
    const int sets = scene_->timed_sets();
    const int64_t bytes = contest.spec.bytes() * sets, most = 20 * settings_.device.l2_bytes;
    const int turns = tiny ? 1 : static_cast<int>((most - 1) / bytes + 1);
    const auto spacer = [this](cudaStream_t stream) { return scene_->launch_spacer(stream); };
    return {stream_, contest.mode, sets, sets * turns, 0.3, tiny ? 1 : 9, tiny ? 1 : 31, spacer};
  }

  // The contenders whose results are right. The others get a row that fails.
  std::vector<Entry> checked(const Contest& contest) {
    std::vector<Entry> right;
    for (const Contender& c : contenders_of(*scene_, contest.lineup)) {
      Row row = row_of(contest, c, scene_->timed_sets());
      if (!c.verify || c.verify(row)) {
        right.push_back({c, row});
      } else {
        report_.check(row, false, contest.name() + ": " + c.name + " computes wrong results");
      }
    }
    return right;
  }

  void write(const Contest& contest, const std::vector<Entry>& entries,
             const std::vector<std::vector<double>>& times, size_t k) {
    const std::string& name = entries[k].contender.name;
    const double us = median(times[k]);
    const double gb_s = static_cast<double>(contest.spec.bytes()) / us * 1e-3;
    const double of_copy = median(ratios(fastest(entries, times, "copy"), times[k]));
    const double of_roof = median(ratios(fastest(entries, times, "roof"), times[k]));
    Row row = entries[k].row;
    row.add("rounds", times[k].size())
        .add("us", us)
        .add("us_least", *std::min_element(times[k].begin(), times[k].end()))
        .add("us_spread", spread(times[k]))
        .add("gb_s", gb_s)
        .add("share_of_copy", of_copy)
        .add("share_of_roof", of_roof);
    char text[160];
    std::snprintf(text, sizeof text, "%9.2f us %6.0f GB/s  copy %.3f  roof %.3f  %s", us, gb_s,
                  of_copy, of_roof, name.c_str());
    report_.check(row, std::isfinite(us) && us > 0, contest.name() + ": " + text);
  }

  // The contender of a group with the least median time.
  static const std::vector<double>& fastest(const std::vector<Entry>& entries,
                                            const std::vector<std::vector<double>>& times,
                                            const std::string& group) {
    size_t best = entries.size();
    for (size_t k = 0; k < entries.size(); ++k) {
      if (entries[k].contender.group != group) continue;
      if (best == entries.size() || median(times[k]) < median(times[best])) best = k;
    }
    return times.at(best);
  }

  const Settings& settings_;
  Report& report_;
  Stream stream_;
  std::unique_ptr<Scene> scene_;
};

// Brings the clocks up to full speed.
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
  std::vector<Contest> contests = settings.tiny ? tiny_contests() : all_contests();
  contests.erase(std::remove_if(contests.begin(), contests.end(),
                                [&](const Contest& c) { return !settings.wants(c.name()); }),
                 contests.end());
  if (settings.list) {
    for (const Contest& contest : contests) std::printf("bandwidth: %s\n", contest.name().c_str());
    return;
  }
  if (contests.empty()) return;
  warm_up(settings);
  Runner runner(settings, report);
  for (const Contest& contest : contests) {
    const std::string name = contest.name();
    if (clock.seconds() > settings.seconds) {
      ++report.skipped;
      report.write(
          Row("skipped").add("section", "bandwidth").add("case", name).add("reason", "out of time"),
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
