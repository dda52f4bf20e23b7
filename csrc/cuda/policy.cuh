// The launch policy of every kernel in one place: how many elements a thread takes at a time, how
// many blocks share an SM, and where the keys of the noise come from. Each choice was made by
// reading the machine code of seven architectures, 7.5 to 12.0. No hot loop spills on any of them.
// The 16-bit backward kernels spill up to 16 bytes in the loop that serves all but usual tiles.
#pragma once

#include "cuda/launch.cuh"
#include "math/gaussian.h"
#include "math/normal.h"
#include "math/storage.h"
#include "params.h"

namespace vae_fused::cuda {

using math::arithmetic_t;

// How a kernel reads and writes.
enum class Access {
  kLinear,   // every tensor there, contiguous and aligned; noise from the key
  kStrided,  // vectors, too, wherever innermost runs consist of whole ones; tensors may be absent
  kPatched,  // channels_last: memory runs across the blocks of noise, see `patch`; the same
  kScalar,   // anything, an element at a time
};

enum class Pass { kForward, kBackward, kForwardMulti, kBackwardMulti };

// Where the keys of Philox's ten rounds come from.
enum class KeySource {
  kSeed,       // added up from the seed for each block of noise: 18 additions for 4 floats
  kRegisters,  // kept in twenty registers
  kShared,     // read from shared memory in each step, by five 16-byte loads
};

// Kernels are instantiated for the Plain family with vectors and noise from the key, and for any
// Family with kStrided, kPatched and kScalar: that one also takes what the plain ones cannot, an
// explicit eps, a value broadcast along a vector, or no vectors at all.
template <class F>
constexpr bool kGeneral = false;
template <typename T>
constexpr bool kGeneral<math::Family<T>> = true;

// Elements of an access to memory: 16 bytes, or two channels of a channels_last tensor.
template <typename S, Access kAccess>
constexpr int kVector = kAccess == Access::kScalar    ? 1
                        : kAccess == Access::kPatched ? 2
                                                      : 16 / sizeof(S);

// Elements that are computed at a time: a block of noise.
template <typename S, Access kAccess>
constexpr int kChunk = kAccess == Access::kScalar ? 1 : math::kNormalsPerBlock<arithmetic_t<S>>;

// Elements of a step: those that a thread loads before it computes any of them.
template <typename S, Access kAccess>
constexpr int kStep = kVector<S, kAccess> * (kAccess == Access::kPatched ? kChunk<S, kAccess> : 1);

// Blocks that an SM holds at least, of 256 threads and so of 255, 128, 80 or 64 registers a thread
// for 1 to 4 blocks.
//
//   general family   Two. Everything may be asked of it. Its patches take up to 170 registers and
//                    have one, as has double.
//   double           Two. Its arithmetic takes four times as long as that of float, and hides more
//                    of the loads. Patches keep the addresses of two more vectors, and have one.
//   float, 16 bits   Four. Without a bound the compiler interleaves the chunks of a 16-bit vector,
//                    takes 100 registers and halves the loads in flight. With five blocks some
//                    architecture spills. Three for patches, which have more addresses to keep, and
//                    for 16-bit views backward, which keep two gradients, three inputs and offsets.
template <Pass kPass, typename S, Access kAccess, class F>
constexpr int min_blocks() {
  constexpr bool kIsPatched = kAccess == Access::kPatched;
  if (kPass == Pass::kForwardMulti || kPass == Pass::kBackwardMulti) {
    return sizeof(S) == 4 ? 4 : 2;  // with three blocks of 16 bits some architecture spills
  }
  if (kGeneral<F>) return sizeof(S) == 8 || kIsPatched ? 1 : 2;
  if (sizeof(S) == 8) return kIsPatched ? 1 : 2;
  if (kIsPatched) return 3;
  return kPass == Pass::kBackward && sizeof(S) == 2 && kAccess == Access::kStrided ? 3 : 4;
}

// Shared memory in the forward kernels of float and 16 bits. Held in registers, the keys made ptxas
// delay the second load of the 16-bit kernel from instruction 10 to 87 of 308, until the first
// chunk was nearly finished, so that only half of a step's bytes were in flight; in float it did so
// on sm_80 and sm_89. Registers elsewhere, except where they would spill: 16-bit vectors backward
// have the keys in shared memory, and float views compute them from the seed. So do kernels of
// single elements and most of the general family, whose other work is much more than those
// additions, and the kernels of lists, which each have the seed of their tensor.
template <Pass kPass, typename S, Access kAccess, class F>
constexpr KeySource key_source() {
  constexpr bool kIsForward = kPass == Pass::kForward, kIs16Bit = sizeof(S) == 2;
  if (kAccess == Access::kScalar) return KeySource::kSeed;
  if (kGeneral<F>) return kIsForward && kIs16Bit ? KeySource::kShared : KeySource::kSeed;
  if (kIsForward) return sizeof(S) < 8 ? KeySource::kShared : KeySource::kRegisters;
  if (kAccess == Access::kPatched) return KeySource::kRegisters;
  if (kIs16Bit) return KeySource::kShared;
  return kAccess == Access::kLinear ? KeySource::kRegisters : KeySource::kSeed;
}

template <Pass kPass, typename S, Access kAccess = Access::kStrided,
          class F = math::Family<arithmetic_t<S>>>
constexpr int kMinBlocks = min_blocks<kPass, S, kAccess, F>();

template <Pass kPass, typename S, Access kAccess, class F>
constexpr KeySource kKeySource = key_source<kPass, S, kAccess, F>();

// Whether the usual calls and tiles, which nearly all are, have a loop of their own: see `Way`.
template <typename S, class F>
constexpr bool kHasUsual = !kGeneral<F> && sizeof(S) < 8;

// The dimensions of the usual views, which have no loop: of chunks the outer and the inner, of
// channels_last images, pixels by c, channels, and c. Not asked of other accesses.
template <Access kAccess>
constexpr int kUsualDims = kAccess == Access::kPatched ? 4 : 2;

// Whether no step is ever partial.
template <Access kAccess>
constexpr bool kAlwaysWhole = kAccess == Access::kPatched || kAccess == Access::kScalar;

}  // namespace vae_fused::cuda
