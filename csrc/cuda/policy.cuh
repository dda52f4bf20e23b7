// How kernels access memory, and the form of a launch policy: what the table of a family holds for
// each of its kernels (latent/policy.cuh, for example).
#pragma once

#include <type_traits>

#include "cuda/launch.cuh"
#include "math/normal.h"
#include "math/storage.h"

namespace vae_fused::cuda {

using math::arithmetic_t;

// How a kernel reads and writes.
enum class Access {
  kLinear,   // every tensor there, contiguous and aligned; noise from the key
  kStrided,  // vectors, too, wherever innermost runs consist of whole ones; tensors may be absent
  kChannelsLast,  // channels_last: memory runs across the blocks of noise, see `try_channels_last`;
                  // the same
  kScalar,        // anything, an element at a time
};

// Elements of an access to memory: 16 bytes, or two channels of a channels_last tensor.
template <typename S, Access kAccess>
constexpr int kVector = kAccess == Access::kScalar         ? 1
                        : kAccess == Access::kChannelsLast ? 2
                                                           : 16 / sizeof(S);

// Elements that are computed at a time: a block of noise.
template <typename S, Access kAccess>
constexpr int kChunk = kAccess == Access::kScalar ? 1 : math::kNormalsPerBlock<arithmetic_t<S>>;

// Elements of a step: those that a thread loads before it computes any of them.
template <typename S, Access kAccess>
constexpr int kStep =
    kVector<S, kAccess> * (kAccess == Access::kChannelsLast ? kChunk<S, kAccess> : 1);

// Whether no step is ever partial.
template <Access kAccess>
constexpr bool kAlwaysWhole = kAccess == Access::kChannelsLast || kAccess == Access::kScalar;

// The number of dimensions of the views that fast paths serve, for which they need no loop: the
// outer and the inner dimension of chunks; images, groups of c pixels, channels, and c of
// channels_last. Other accesses do not use it.
template <Access kAccess>
constexpr int kFastDims = kAccess == Access::kChannelsLast ? 4 : 2;

// Whether kernels with vectors exist for elements of this type and options other than the default
// ones. Elements of 8 bytes are coalesced as well as vectors are, and these kernels of double were
// a fifth of the binary: with them sm_120 had 4.9 MB.
template <typename S>
constexpr bool kGeneralHasVectors = sizeof(S) < 8;

// Where the keys of Philox's ten rounds come from.
enum class KeySource {
  kSeed,       // added up from the seed for each block of noise: 18 additions for 4 floats
  kRegisters,  // kept in twenty registers
  kShared,     // read from shared memory in each step, by five 16-byte loads
};

struct LaunchPolicy {
  // Blocks that an SM holds at least, of 256 threads. So 1 to 4 blocks leave a thread 255, 128, 80
  // or 64 registers.
  int min_blocks;
  KeySource keys = KeySource::kSeed;
  // Whether calls and tiles that are common have a loop of their own, without run-time checks: see
  // `KernelChoice`.
  bool has_fast_path = false;
};

// A set of enumerators or of numbers below 32.
struct Set {
  unsigned bits = 0;

  template <typename... E>
  constexpr Set(E... elements) : bits((0u | ... | (1u << static_cast<unsigned>(elements)))) {}

  template <typename E>
  constexpr bool has(E element) const {
    return bits >> static_cast<unsigned>(element) & 1;
  }
};

// The policy of some of a family's kernels, for elements of these numbers of bytes.
struct PolicyRow {
  Set kernels, bytes, accesses;
  LaunchPolicy policy;
};

// The row of a kernel. Each kernel that is instantiated has one: without it this does not compile.
template <typename Kernel, size_t N>
constexpr LaunchPolicy find_policy(const PolicyRow (&table)[N], Kernel kernel, int bytes,
                                   Access access) {
  for (const PolicyRow& row : table) {
    if (row.kernels.has(kernel) && row.bytes.has(bytes) && row.accesses.has(access)) {
      return row.policy;
    }
  }
  throw "no launch policy";
}

}  // namespace vae_fused::cuda
