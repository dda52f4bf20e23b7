// Philox4x32-10: a counter becomes four random words.
//
// J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2,
// 3", SC 2011, section 4.3. A block of the stream of a key (seed, offset) is
//
//   words(block) = Philox4x32-10(key = seed, counter = offset + block)
//
// with the 64-bit sum in the low half of the 128-bit counter and 0 in the high half: the stateless
// stream of PyTorch (torch.func._random) and subsequence 0 of cuRAND's Philox generator.
// Cost: 10 rounds of two 32x32->64 multiplications and four xors, about 60 instructions for 4
// words.
#pragma once

#include "math/platform.h"

namespace vae_fused::math {

template <typename W>
struct Words {
  W w[4];
};

// The keys of round r: the seed's low and high word, plus r times a constant each. Computed where
// they are wanted,
struct Seed {
  uint32_t low, high;

  VAE_FUSED_HD explicit Seed(uint64_t seed)
      : low(static_cast<uint32_t>(seed)), high(static_cast<uint32_t>(seed >> 32)) {}

  VAE_FUSED_HD uint32_t first(uint32_t r) const { return low + r * 0x9E3779B9u; }
  VAE_FUSED_HD uint32_t second(uint32_t r) const { return high + r * 0xBB67AE85u; }
};

constexpr int kRounds = 10;

// or kept.
struct RoundKeys {
  uint32_t k[kRounds][2];

  VAE_FUSED_HD uint32_t first(uint32_t r) const { return k[r][0]; }
  VAE_FUSED_HD uint32_t second(uint32_t r) const { return k[r][1]; }
};

// Words as they shall come out of the last round: vectors close their ranks (cpu/vector.h).
VAE_FUSED_HD uint32_t packed(uint32_t w) { return w; }
VAE_FUSED_HD uint32_t packed_mulhi(uint32_t a, uint32_t b) { return mulhi(a, b); }

// Round r and those that follow. The words of a counter are numbers, or vectors with a block in
// each lane; a word that is the same in all lanes may stay a number, and what follows from numbers
// alone is computed once for all.
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

// The low and the high word of the counter.
template <class Keys, typename Low, typename High>
VAE_FUSED_HD auto philox(const Keys& keys, Low low, High high) {
  return philox_rounds<0>(keys, low, high, uint32_t{0}, uint32_t{0});
}

template <class Keys>
VAE_FUSED_HD Words<uint32_t> philox(const Keys& keys, uint64_t counter) {
  return philox(keys, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32));
}

}  // namespace vae_fused::math
