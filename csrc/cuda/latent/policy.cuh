// The launch policy of every kernel of the latent family. Each policy was chosen from the machine
// code for seven architectures, 7.5 to 12.0. No kernel spills on any of these architectures.
#pragma once

#include "cuda/policy.cuh"
#include "math/latent/log_ratio.h"

namespace vae_fused::cuda {

// The options of the general kernels. These kernels exist for kStrided, kChannelsLast and kScalar,
// but in double precision only for kScalar. They also handle the calls with default options that
// the kernels for DefaultOptions do not support: calls with an explicit eps, with a value that is
// broadcast along a vector, or with tensors that cannot be accessed in vectors. The kernels for
// DefaultOptions access memory only in vectors, and always generate their noise from the key.
template <typename T>
struct OptionsOnDevice : math::LatentOptions<T> {
  math::DeviceScalars scalars;  // these replace some of the numbers
};

// The options of a call that estimates the KL from its samples. Such calls have separate kernels,
// because the general kernels have no registers left for the estimates. The kernels exist for
// kStrided and kScalar.
template <typename T>
struct OptionsAtSample : OptionsOnDevice<T> {};

template <class Options>
constexpr bool kAtSample = false;
template <typename T>
constexpr bool kAtSample<OptionsAtSample<T>> = true;

template <class Options>
constexpr bool kGeneral = kAtSample<Options>;
template <typename T>
constexpr bool kGeneral<OptionsOnDevice<T>> = true;

enum class Kernel {
  kForward,   // for DefaultOptions
  kBackward,  // for DefaultOptions
  kForwardGeneral,
  kBackwardGeneral,
  kForwardAtSample,
  kBackwardAtSample,
  kForwardMulti,
  kBackwardMulti,
  kStats,
};

// The reasons for each key source:
//
//   kShared      With keys in registers, ptxas moved the second load of the 16-bit forward kernel
//                from instruction 10 of 308 to instruction 87, where the first chunk is nearly
//                finished. Only half of a step's bytes were then in flight. On sm_80 and sm_89,
//                ptxas delayed the second load of the float kernel as well.
//   kRegisters   Registers are the cheapest source in all other kernels, unless the kernel would
//                spill.
//   kSeed        The additions cost little compared with the other work of kernels that access
//                single elements, and of most general kernels. The kernels for lists of tensors
//                always use kSeed.
//
// Without a minimum number of blocks, the compiler interleaves the chunks of a 16-bit vector, which
// takes 100 registers and halves the loads in flight. With a minimum of five blocks, the kernel
// spills on some architecture.
constexpr PolicyRow kPolicies[] = {
    // The default forward kernels. A kChannelsLast step keeps more addresses in registers, so its
    // kernels have a minimum of three blocks.
    {{Kernel::kForward},
     {2, 4},
     {Access::kContiguous, Access::kStrided},
     {4, KeySource::kShared, true}},
    {{Kernel::kForward}, {2, 4}, {Access::kChannelsLast}, {3, KeySource::kShared, true}},
    // The arithmetic in double takes four times as long as that in float and hides more of the load
    // latency, so two blocks are enough. A kChannelsLast step keeps the addresses of two more
    // vectors in registers, so its kernels have one block.
    {{Kernel::kForward}, {8}, {Access::kContiguous, Access::kStrided}, {2, KeySource::kRegisters}},
    {{Kernel::kForward}, {8}, {Access::kChannelsLast}, {1, KeySource::kRegisters}},

    // The default backward kernels for float. The kernel for views would spill if it kept the keys
    // in registers.
    {{Kernel::kBackward}, {4}, {Access::kContiguous}, {4, KeySource::kRegisters, true}},
    {{Kernel::kBackward}, {4}, {Access::kStrided}, {4, KeySource::kSeed, true}},
    // The 16-bit kernels would spill if they kept the keys in registers. The kernel for views keeps
    // two gradients, three inputs and offsets in registers, so it has three blocks.
    {{Kernel::kBackward}, {2}, {Access::kContiguous}, {4, KeySource::kShared, true}},
    {{Kernel::kBackward}, {2}, {Access::kStrided}, {3, KeySource::kShared, true}},
    {{Kernel::kBackward}, {2, 4}, {Access::kChannelsLast}, {3, KeySource::kRegisters, true}},
    {{Kernel::kBackward}, {8}, {Access::kContiguous}, {2, KeySource::kRegisters}},
    {{Kernel::kBackward}, {8}, {Access::kStrided}, {2, KeySource::kSeed}},
    {{Kernel::kBackward}, {8}, {Access::kChannelsLast}, {1, KeySource::kRegisters}},

    // A general kernel tests every option at run time. For kChannelsLast, it needs up to 170
    // registers, so only one of its blocks fits on an SM. The same holds for double.
    {{Kernel::kForwardGeneral}, {2}, {Access::kStrided}, {2, KeySource::kShared}},
    {{Kernel::kForwardGeneral}, {2}, {Access::kChannelsLast}, {1, KeySource::kShared}},
    {{Kernel::kForwardGeneral, Kernel::kBackwardGeneral}, {2, 4}, {Access::kChannelsLast}, {1}},
    {{Kernel::kForwardGeneral, Kernel::kBackwardGeneral}, {2, 4}, {Access::kStrided}, {2}},
    // Kernels that access single floats need 64 to 72 registers. With a minimum of two blocks,
    // ptxas would use 96 registers.
    {{Kernel::kForwardGeneral, Kernel::kBackwardGeneral}, {4}, {Access::kScalar}, {3}},
    {{Kernel::kForwardGeneral, Kernel::kBackwardGeneral}, {2}, {Access::kScalar}, {2}},
    {{Kernel::kForwardGeneral, Kernel::kBackwardGeneral}, {8}, {Access::kScalar}, {1}},

    // These kernels estimate the KL from samples. Their loop over the samples keeps five sums for
    // each element of a chunk.
    {{Kernel::kForwardAtSample, Kernel::kBackwardAtSample}, {2, 4}, {Access::kStrided}, {1}},
    {{Kernel::kForwardAtSample, Kernel::kBackwardAtSample}, {2, 4, 8}, {Access::kScalar}, {1}},

    // Batch statistics, with one thread per element of a line. Without a minimum, ptxas aims for
    // three blocks on sm_75 and sm_80, and may spill to reach that number.
    {{Kernel::kStats}, {2, 4, 8}, {Access::kScalar}, {2}},

    // Lists of tensors. With three blocks, the 16-bit kernels spill on some architecture.
    {{Kernel::kForwardMulti, Kernel::kBackwardMulti}, {4}, {Access::kStrided}, {4}},
    {{Kernel::kForwardMulti, Kernel::kBackwardMulti}, {2, 8}, {Access::kStrided}, {2}},
};

template <Kernel kKernel, typename S, Access kAccess = Access::kStrided>
constexpr LaunchPolicy kPolicy = find_policy(kPolicies, kKernel, sizeof(S), kAccess);

template <Kernel kKernel, typename S, Access kAccess = Access::kStrided>
constexpr int kMinBlocks = kPolicy<kKernel, S, kAccess>.min_blocks;

template <Kernel kKernel, typename S, Access kAccess>
constexpr KeySource kKeySource = kPolicy<kKernel, S, kAccess>.keys;

template <Kernel kKernel, typename S, Access kAccess>
constexpr bool kHasFastPath = kPolicy<kKernel, S, kAccess>.has_fast_path;

template <class Options>
constexpr Kernel kForwardKernel = kAtSample<Options>  ? Kernel::kForwardAtSample
                                  : kGeneral<Options> ? Kernel::kForwardGeneral
                                                      : Kernel::kForward;
template <class Options>
constexpr Kernel kBackwardKernel = kAtSample<Options>  ? Kernel::kBackwardAtSample
                                   : kGeneral<Options> ? Kernel::kBackwardGeneral
                                                       : Kernel::kBackward;

// Whether the backward kernel for contiguous tensors also handles calls in which a tile has several
// rows of the KL. The 16-bit kernel has 64 registers, and its loop for such tiles would spill up to
// 36 bytes on four architectures. The kernel for views, which has 80 registers, handles these calls
// instead.
template <typename S>
constexpr bool kContiguousServesRows = sizeof(S) != 2;

}  // namespace vae_fused::cuda
