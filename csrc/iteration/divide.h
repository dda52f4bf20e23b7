// Divides by an invariant divisor with a multiplication, on host and device.
#pragma once

#include "math/platform.h"

namespace vae_fused {

// Divides 0 <= n < 2^(B-1) by an invariant d, where W is a B-bit integer (Granlund and Montgomery
// 1994, with n doubled so that the multiplier fits into W for all d):
//
//   l = ceil(log2 d),  m = floor(2^(B-1 + l) / d) + 1,  n / d = 2n m / 2^B / 2^l
//
// m d exceeds 2^(B-1 + l) by e <= d <= 2^l, so n m / 2^(B-1 + l) exceeds n / d by less than 1 / d.
// On a GPU a 64-bit division takes about 15 instructions, and a 32-bit division takes 3. The
// built-in 64-bit operator / would be a call with a stack frame.
template <typename W>
struct DivisorOf {
  static constexpr int kBits = 8 * sizeof(W);
  W multiplier = W{1} << (kBits - 1) | 1;  // d = 1
  int32_t shift = 0;
};

template <typename W>
DivisorOf<W> divisor_of(W d) {
  int32_t shift = 0;
  while ((W{1} << shift) < d) ++shift;
  const auto power = static_cast<unsigned __int128>(1) << (DivisorOf<W>::kBits - 1 + shift);
  return {static_cast<W>(power / d) + 1, shift};
}

template <typename W>
VAE_FUSED_HD W quotient(W n, const DivisorOf<W>& d) {
  return math::mulhi(static_cast<W>(n << 1), d.multiplier) >> d.shift;
}

// A divisor for 64-bit and 32-bit integers. `narrow` is valid only for n, d < 2^31.
struct Divisor {
  DivisorOf<uint64_t> wide;
  DivisorOf<uint32_t> narrow;
};

inline Divisor divisor(int64_t d) {
  const bool is_narrow = d < int64_t{1} << 31;
  return {divisor_of(static_cast<uint64_t>(d)),
          divisor_of(static_cast<uint32_t>(is_narrow ? d : 1))};
}

VAE_FUSED_HD int64_t operator/(int64_t n, const Divisor& d) {
  return static_cast<int64_t>(quotient(static_cast<uint64_t>(n), d.wide));
}
VAE_FUSED_HD uint32_t operator/(uint32_t n, const Divisor& d) { return quotient(n, d.narrow); }

}  // namespace vae_fused
