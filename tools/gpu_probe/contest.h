// Times contenders in turn, in a new order in each round, so that changes of the machine (clocks,
// temperature) affect all of them.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "device.h"

namespace vae_fused::probe {

class Clock {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

inline double median(std::vector<double> values) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return 0.5 * (values[(n - 1) / 2] + values[n / 2]);
}

// Half of the distance between the quartiles.
inline double spread(std::vector<double> values) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return 0.5 * (values[n - 1 - n / 4] - values[n / 4]);
}

enum class Mode { kStream, kGraph };

struct Racing {
  cudaStream_t stream;
  Mode mode;
  int sets;          // that launches rotate over
  int launches;      // per batch
  double seconds;    // for all rounds
  int least_rounds;  // the minimum, regardless of the time
  int most_rounds;
  std::function<int(cudaStream_t)> spacer;
};

// launch(set, stream) returns a cudaError_t.
using Launch = std::function<int(int, cudaStream_t)>;

// Microseconds of a launch, by contender and round. The time of a batch is taken between two
// events. Before the first event a copy keeps the device busy, so that the launches are queued
// before the device needs them. The unwritten data that the copy leaves in the L2 cache compensate
// for the data that the batch leaves there.
inline std::vector<std::vector<double>> race(const std::vector<Launch>& contenders,
                                             const Racing& how) {
  const auto batch = [&](const Launch& launch) {
    for (int i = 0; i < how.launches; ++i) {
      check(launch(1 + i % how.sets, how.stream), "launch");
    }
  };
  std::vector<std::unique_ptr<Graph>> graphs;
  if (how.mode == Mode::kGraph) {
    for (const Launch& launch : contenders) {
      check(launch(1, how.stream), "launch");  // loads the kernel, which a capture might not allow
      graphs.push_back(std::make_unique<Graph>(how.stream, [&] { batch(launch); }));
    }
  }
  const auto go = [&](size_t k) {
    if (how.mode == Mode::kGraph) return graphs[k]->launch(how.stream);
    batch(contenders[k]);
  };
  for (size_t k = 0; k < contenders.size(); ++k) go(k);  // warms up
  check(cudaStreamSynchronize(how.stream), "warm-up");

  Stopwatch stopwatch(how.stream);
  std::vector<std::vector<double>> times(contenders.size());
  std::vector<size_t> order(contenders.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937 random(1);
  const Clock clock;
  for (int round = 0; round < how.most_rounds; ++round) {
    if (round >= how.least_rounds && clock.seconds() > how.seconds) break;
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t k : order) {
      check(how.spacer(how.stream), "spacer");
      times[k].push_back(stopwatch.microseconds([&] { go(k); }) / how.launches);
    }
  }
  return times;
}

}  // namespace vae_fused::probe
