// Philox4x32-10 maps a counter to four random words.
//
// J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2,
// 3", SC 2011, section 4.3. A block of the stream of a key (seed, offset) is
//
//   words(block) = Philox4x32-10(key = seed, counter = offset + block)
//
// where the 64-bit sum is the low half of the 128-bit counter and the high half is 0. This is the
// stateless stream of PyTorch (torch.func._random) and subsequence 0 of cuRAND's Philox generator.
// A block takes 10 rounds, each with two 32x32->64 multiplications and four xors, which is about 60
// instructions for 4 words.
#pragma once

#include "math/platform.h"

namespace vae_fused::math {

template <typename W>
struct Words {
  W w[4];
};

// The two keys of round r are the low and the high word of the seed, each plus r times its own
// constant. `Seed` recomputes the keys each time they are used.
struct Seed {
  uint32_t low, high;

  VAE_FUSED_HD explicit Seed(uint64_t seed)
      : low(static_cast<uint32_t>(seed)), high(static_cast<uint32_t>(seed >> 32)) {}

  VAE_FUSED_HD uint32_t first(uint32_t r) const { return low + r * 0x9E3779B9u; }
  VAE_FUSED_HD uint32_t second(uint32_t r) const { return high + r * 0xBB67AE85u; }
};

constexpr int kRounds = 10;

// `RoundKeys` stores the keys of all rounds.
struct RoundKeys {
  uint32_t k[kRounds][2];

  VAE_FUSED_HD uint32_t first(uint32_t r) const { return k[r][0]; }
  VAE_FUSED_HD uint32_t second(uint32_t r) const { return k[r][1]; }
};

// Converts a word to the type of the last round's results. Vectors of 64-bit lanes drop the high
// half of each lane here (cpu/vector.h).
VAE_FUSED_HD uint32_t packed(uint32_t w) { return w; }
VAE_FUSED_HD uint32_t packed_mulhi(uint32_t a, uint32_t b) { return mulhi(a, b); }

// Computes round r and all later rounds. The words of a counter are scalars, or vectors with one
// block in each lane. A word that is the same in all lanes may remain a scalar, and everything that
// depends only on scalars is then computed once for all lanes.
template <int r, class Keys, typename W0, typename W1, typename W2, typename W3>
VAE_FUSED_HD auto philox_rounds(const Keys& keys, W0 c0, W1 c1, W2 c2, W3 c3) {
  constexpr uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
  const uint32_t k0 = keys.first(r), k1 = keys.second(r);
  if constexpr (r == kRounds - 1) {
    return Words<decltype(packed(c0))>{{packed_mulhi(kM1, c2) ^ (packed(c1) ^ k0), packed(kM1 * c2),
                                        packed_mulhi(kM0, c0) ^ (packed(c3) ^ k1),
                                        packed(kM0 * c0)}};
  } else {
    return philox_rounds<r + 1>(keys, mulhi(kM1, c2) ^ (c1 ^ k0), kM1 * c2,
                                mulhi(kM0, c0) ^ (c3 ^ k1), kM0 * c0);
  }
}

// `low` and `high` are the words of the 64-bit counter.
template <class Keys, typename Low, typename High>
VAE_FUSED_HD auto philox(const Keys& keys, Low low, High high) {
  return philox_rounds<0>(keys, low, high, uint32_t{0}, uint32_t{0});
}

template <class Keys>
VAE_FUSED_HD Words<uint32_t> philox(const Keys& keys, uint64_t counter) {
  return philox(keys, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32));
}

}  // namespace vae_fused::math
