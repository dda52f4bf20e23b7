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

struct Words {
  uint32_t w[4];
};

VAE_FUSED_HD Words philox(uint64_t seed, uint64_t counter) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = 0, c3 = 0;
  VAE_FUSED_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint32_t lo0 = 0xD2511F53u * c0, hi0 = mulhi(0xD2511F53u, c0);
    const uint32_t lo1 = 0xCD9E8D57u * c2, hi1 = mulhi(0xCD9E8D57u, c2);
    c0 = hi1 ^ c1 ^ k0;
    c1 = lo1;
    c2 = hi0 ^ c3 ^ k1;
    c3 = lo0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace vae_fused::math
