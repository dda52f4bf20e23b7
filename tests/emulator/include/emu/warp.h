// Warp operations. Each call is a rendezvous of the lanes in its mask: a lane waits until all lanes
// of the mask that have not exited have made the same call with the same mask. Lanes are otherwise
// independent and do not run in lockstep.
//
// A shuffle or a vote does not order memory (CUDA C++ Programming Guide, "Warp Shuffle Functions").
// Only __syncwarp does.
#pragma once

#include "emu/device.h"

namespace emu::detail {

enum class WarpOp { kSync, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor, kAny, kAll, kBallot };

struct Rendezvous {
  uint64_t value;        // the value of the source lane
  unsigned int ballot;   // lanes with a non-zero value
  unsigned int arrived;  // lanes that took part
};

int lane();

// Returns the value of lane `source`. It is a fault if that lane does not take part.
Rendezvous meet(WarpOp op, unsigned int mask, uint64_t value, int source, Site site);

template <typename T>
inline T shuffle(WarpOp op, unsigned int mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "a shuffle moves 4 or 8 bytes");
  uint64_t raw = 0;
  std::memcpy(&raw, &value, sizeof value);
  raw = meet(op, mask, raw, source, site).value;
  std::memcpy(&value, &raw, sizeof value);
  return value;
}

}  // namespace emu::detail

inline void __syncwarp(unsigned int mask = 0xFFFFFFFFu, EMU_SITE) {
  const int self = emu::detail::lane();
  emu::detail::meet(emu::detail::WarpOp::kSync, mask, 0, self, {file, line});
}

inline unsigned int __activemask() { return 1u << emu::detail::lane(); }

// The four shuffles differ in the source lane. A lane whose source is outside of its segment of
// `width` lanes gets its own value.
template <typename T>
inline T __shfl_sync(unsigned int mask, T value, int source, int width = 32, EMU_SITE) {
  const int base = emu::detail::lane() & ~(width - 1);
  return emu::detail::shuffle(emu::detail::WarpOp::kShuffle, mask, value,
                              base + (source & (width - 1)), {file, line});
}
template <typename T>
inline T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32, EMU_SITE) {
  const int self = emu::detail::lane(), source = self - static_cast<int>(delta);
  return emu::detail::shuffle(emu::detail::WarpOp::kShuffleUp, mask, value,
                              source < (self & ~(width - 1)) ? self : source, {file, line});
}
template <typename T>
inline T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                          EMU_SITE) {
  const int self = emu::detail::lane(), source = self + static_cast<int>(delta);
  return emu::detail::shuffle(emu::detail::WarpOp::kShuffleDown, mask, value,
                              source > (self | (width - 1)) ? self : source, {file, line});
}
template <typename T>
inline T __shfl_xor_sync(unsigned int mask, T value, int bits, int width = 32, EMU_SITE) {
  const int self = emu::detail::lane(), source = self ^ bits;
  return emu::detail::shuffle(emu::detail::WarpOp::kShuffleXor, mask, value,
                              source > (self | (width - 1)) ? self : source, {file, line});
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, EMU_SITE) {
  const int self = emu::detail::lane();
  return emu::detail::meet(emu::detail::WarpOp::kBallot, mask, predicate != 0, self, {file, line})
      .ballot;
}
inline int __any_sync(unsigned int mask, int predicate, EMU_SITE) {
  const int self = emu::detail::lane();
  return emu::detail::meet(emu::detail::WarpOp::kAny, mask, predicate != 0, self, {file, line})
             .ballot != 0;
}
inline int __all_sync(unsigned int mask, int predicate, EMU_SITE) {
  const int self = emu::detail::lane();
  const auto met =
      emu::detail::meet(emu::detail::WarpOp::kAll, mask, predicate != 0, self, {file, line});
  return met.ballot == met.arrived;
}
