// The calls of the correctness section: every access of the kernels, every way of reducing the KL,
// and the options that have kernels of their own.
#pragma once

#include <string>
#include <vector>

#include "tensors.h"

namespace vae_fused::probe {

// The options of a call.
struct Request {
  bool sample = true, kl = true;
  bool explicit_noise = false;  // eps instead of a key
  bool clamped = false;         // clamps the raw scale
  bool general = false;         // softplus with a floor, a prior of tensors, a mask, a temperature
  bool free_bits = false;       // a floor of the KL and weights of its gradient
  bool key_by_pointer = false;
  bool one_grad_kl = false;  // backward: one gradient for all rows
  int64_t samples = 1;
};

struct Case {
  std::string name, access;
  Shape shape;
  Request request;
};

// `tiny` is for the emulated device, whose kernels are compiled to merge tiles from 12 blocks on.
inline std::vector<Case> correctness_cases(bool tiny) {
  using L = Layout;
  const int64_t enough = tiny ? 12 : 2048;  // number of blocks from which tiles are merged
  const auto pixels = [&](int64_t n) { return tiny ? n : 4 * n; };
  std::vector<Case> cases = {
      {"sum", "contiguous", {{3, 2051}, {true, true}}, {}},
      {"whole tiles", "contiguous", {{4, 2048}, {true, true}}, {}},
      {"merged tiles", "contiguous", {{enough * 2048 + 6152}, {true}}, {}},
      {"no reduction", "contiguous", {{37, 131}, {false, false}}, {}},
      {"rows of 2", "contiguous", {{1031, 2}, {false, true}}, {}},
      {"rows of 3", "contiguous", {{515, 3}, {false, true}}, {}},
      {"rows of 96", "contiguous", {{41, 96}, {false, true}}, {}},
      {"rows of 256", "contiguous", {{64, 256}, {false, true}}, {}},
      {"merged rows of 256", "contiguous", {{enough * 8 + 37, 256}, {false, true}}, {}},
      {"odd rows", "contiguous", {{29, 131}, {false, true}}, {}},
      {"long rows", "contiguous", {{3, 8196}, {false, true}}, {}},
      {"long odd rows", "contiguous", {{9, 4099}, {false, true}}, {}},
      {"chunks, sum", "chunked", {{3, 4, pixels(256)}, {true, true, true}, L::kChunked}, {}},
      {"chunks, rows", "chunked", {{5, 4, 40}, {false, true, true}, L::kChunked}, {}},
      {"chunks, long rows", "chunked", {{2, 4, 1104}, {false, true, true}, L::kChunked}, {}},
      {"4 channels, sum",
       "channels_last",
       {{3, 4, pixels(512)}, {true, true, true}, L::kChannelsLast},
       {}},
      {"4 channels, rows",
       "channels_last",
       {{5, 4, 256}, {false, true, true}, L::kChannelsLast},
       {}},
      {"16 channels, sum",
       "channels_last",
       {{2, 16, pixels(128)}, {true, true, true}, L::kChannelsLast},
       {}},
      {"6 channels, rows",
       "channels_last",
       {{2, 6, 40}, {false, true, true}, L::kChannelsLast},
       {}},
      {"one image", "channels_last", {{1, 4, 256}, {true, true, true}, L::kChannelsLast}, {}},
      {"misaligned", "scalar", {{3, 1001}, {true, true}, L::kShifted}, {}},
      {"misaligned rows", "scalar", {{9, 100}, {false, true}, L::kShifted}, {}},
      {"odd chunks", "scalar", {{3, 5, 7}, {false, true, true}, L::kChunked}, {}},
      {"odd channels", "scalar", {{2, 5, 9}, {false, true, true}, L::kChannelsLast}, {}},
  };
  const Shape flat{{41, 96}, {false, true}}, sum{{4, 2048}, {true, true}};
  const Shape images{{3, 4, 96}, {false, true, true}, L::kChannelsLast};
  Request r;
  const auto option = [&](const std::string& name, const Shape& shape) {
    const bool last = shape.layout == L::kChannelsLast;
    cases.push_back({name, last ? "channels_last" : "contiguous", shape, r});
    r = {};
  };
  r.clamped = true, option("clamped", sum);
  r.key_by_pointer = true, option("key by pointer", sum);
  r.kl = false, option("sample alone", sum);
  r.sample = false, option("KL alone", flat);
  r.one_grad_kl = true, option("one gradient", flat);
  r.explicit_noise = true, option("explicit noise", flat);
  r.general = true, option("general", flat);
  r.general = true, option("general images", images);
  r.general = true, r.samples = 3, option("three samples", flat);
  r.general = r.explicit_noise = true, r.samples = 2, option("two explicit samples", flat);
  r.free_bits = true, option("free bits and balance", sum);
  return cases;
}

}  // namespace vae_fused::probe
