// Defines how kernels access memory, and the format of a launch policy. Each family has a table
// with a policy for each of its kernels, for example in latent/policy.cuh.
#pragma once

#include <type_traits>

#include "cuda/launch.cuh"
#include "math/normal.h"
#include "math/storage.h"

namespace vae_fused::cuda {

using math::arithmetic_t;

// The ways in which a kernel accesses its tensors.
enum class Access {
  kContiguous,    // every tensor is present, contiguous and aligned; the noise comes from the key
  kStrided,       // vectors, because innermost runs are whole vectors; tensors may be absent
  kChannelsLast,  // channels_last: memory is contiguous across the blocks of noise, see
                  // `try_channels_last`; tensors may be absent
  kScalar,        // any layout, one element at a time
};

// The number of elements per memory access: 16 bytes, or two channels of a channels_last tensor.
template <typename S, Access kAccess>
constexpr int kVector = kAccess == Access::kScalar         ? 1
                        : kAccess == Access::kChannelsLast ? 2
                                                           : 16 / sizeof(S);

// The number of elements that are computed together: one, or as many as a block of noise contains.
template <typename S, Access kAccess>
constexpr int kChunk = kAccess == Access::kScalar ? 1 : math::kNormalsPerBlock<arithmetic_t<S>>;

// The number of elements in a step. A thread loads all of them before it computes any.
template <typename S, Access kAccess>
constexpr int kStep =
    kVector<S, kAccess> * (kAccess == Access::kChannelsLast ? kChunk<S, kAccess> : 1);

// Whether every step is whole.
template <Access kAccess>
constexpr bool kAlwaysWhole = kAccess == Access::kChannelsLast || kAccess == Access::kScalar;

// The number of dimensions of the views that fast paths handle without a loop over dimensions. A
// chunked view has an outer and an inner dimension. The dimensions of a channels_last view are
// images, groups of c pixels, channels, and the c pixels of a group. Other access modes do not use
// this constant.
template <Access kAccess>
constexpr int kFastDims = kAccess == Access::kChannelsLast ? 4 : 2;

// Whether kernels for general options have vector versions for elements of this type. Accesses to
// single 8-byte elements are coalesced as well as vector accesses are, and the vector kernels for
// double made up a fifth of the binary. With these kernels, the code for sm_120 was 4.9 MB.
template <typename S>
constexpr bool kGeneralHasVectors = sizeof(S) < 8;

// The sources of the keys of the ten Philox rounds.
enum class KeySource {
  kSeed,       // computed from the seed for each block of noise: 18 additions for 4 floats
  kRegisters,  // kept in twenty registers
  kShared,     // read from shared memory in each step, by five 16-byte loads
};

struct LaunchPolicy {
  // The minimum number of 256-thread blocks per SM. With 1, 2, 3 or 4 blocks, a thread has 255,
  // 128, 80 or 64 registers, respectively.
  int min_blocks;
  KeySource keys = KeySource::kSeed;
  // Whether common calls and tiles have a separate loop without run-time checks: see
  // `KernelChoice`.
  bool has_fast_path = false;
};

// A set of enumerators, or of integers below 32.
struct EnumSet {
  unsigned bits = 0;

  template <typename... E>
  constexpr EnumSet(E... elements) : bits((0u | ... | (1u << static_cast<unsigned>(elements)))) {}

  template <typename E>
  constexpr bool has(E element) const {
    return bits >> static_cast<unsigned>(element) & 1;
  }
};

// The policy of a family for these kernels, element sizes in bytes, and access modes.
struct PolicyRow {
  EnumSet kernels, bytes, accesses;
  LaunchPolicy policy;
};

// Returns the policy of a kernel. Instantiating a kernel that has no row in the table is a compile
// error.
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
