// The interface through which the streams (stream.cpp) run one block (block.cpp) on the calling OS
// thread.
#pragma once

#include <cstdint>
#include <string>

#include "emu/host.h"

namespace emu::detail {

// SplitMix64 (Steele, Lea, Flood 2014). On every platform, its output depends only on the seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(((next() >> 32) * n) >> 32); }

 private:
  uint64_t next() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  uint64_t state_;
};

// Runs one block to its end. Returns "" or a fault report. `after` and `done` are tokens of race.h:
// the block acquires `after` at its beginning and releases `done` at its end.
std::string run_block(const Work& work, uint3 index, Random& random, void* after, void* done);

// Call this after the host has waited for all launches.
void host_has_waited();

}  // namespace emu::detail
