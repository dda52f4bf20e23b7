// Selects, on the host, how a call's tensors are accessed and which kernel handles the call. The
// choice covers all tensors of a call at once, so that no thread ever checks a layout or an
// alignment.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cuda/policy.cuh"
#include "iteration/space.h"

namespace vae_fused::cuda {

// Returns the operands of a call that are present.
template <class Params>
std::vector<OperandRef> operands_of(Params& params) {
  std::vector<OperandRef> present;
  for_each_operand(params, [&](const OperandRef& ref) {
    if (ref.operand->data) present.push_back(ref);
  });
  return present;
}

// Whether the innermost runs of a tensor consist of whole vectors.
inline bool has_whole_runs(const Space& space, const int64_t* stride, int v) {
  const int inner = space.ndim - 1;
  if (stride[inner] != 1 || space.size[inner] % v != 0) return false;
  for (int d = 0; d < inner; ++d) {
    if (stride[d] % v != 0) return false;
  }
  return true;
}

inline bool is_aligned(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % std::min<int64_t>(bytes, 16) == 0;
}

// Prepares a channels_last call. Its channels (dimension i) are contiguous in memory, but its
// pixels (dimension m) are contiguous in the noise. For noise in blocks of c, the new flat order is
// (..., m / c, i, c). A step is then v = 2 channels by c pixels, which reads c small vectors from
// memory and uses two whole blocks of noise. Larger vectors would leave most threads of a tile
// without a step, and would exclude 16-bit latents with 4 channels. A single image gets an outer
// dimension of size 1. Returns false and changes nothing if the tensors have another layout, or if
// the order of the kept dimensions, which is the order of the KL's rows, would change.
inline bool try_channels_last(Space& space, const std::vector<OperandRef>& operands, bool has_rows,
                              int v, int c) {
  const auto broadcasts_inner = [](const OperandRef& ref, int d) {
    return !ref.written && ref.operand->stride[d] == 0;
  };
  const auto is_inner = [&](int d) {
    return space.size[d] % v == 0 &&
           std::all_of(operands.begin(), operands.end(), [&](const OperandRef& ref) {
             return ref.operand->stride[d] == 1 || broadcasts_inner(ref, d);
           });
  };
  int i = -1, m = -1;
  const bool any_order = !has_rows && space.cols == 1;
  int64_t covered = 1;
  for (int d = space.ndim - 1; d >= 0; --d) {
    covered *= space.size[d];
    if (covered > space.cols && !any_order) break;
    if (is_inner(d)) i = d;
    if (space.noise_stride[d] == 1 && space.size[d] % c == 0) m = d;
  }
  if (i < 0 || m < 0 || i == m || space.ndim + 1 > kMaxDims) return false;
  for (const OperandRef& ref : operands) {
    if (!broadcasts_inner(ref, i) && !is_aligned(ref.operand->data, int64_t{ref.bytes} * v))
      return false;
  }
  for (int d = 0; d < space.ndim; ++d) {
    if (d != m && space.noise_stride[d] % c != 0) return false;
    for (const OperandRef& ref : operands) {
      if (d != i && !broadcasts_inner(ref, i) && ref.operand->stride[d] % v != 0) return false;
    }
  }
  const auto reorder = [&](int64_t (&values)[kMaxDims], int64_t image, int64_t outer,
                           int64_t last) {
    int64_t ordered[kMaxDims];
    int at = 0;
    for (int d = 0; d < space.ndim; ++d) {
      if (d != i && d != m) ordered[at++] = values[d];
    }
    if (at == 0) ordered[at++] = image;
    ordered[at++] = outer;
    ordered[at++] = values[i];
    ordered[at++] = last;
    std::copy_n(ordered, at, values);
  };
  for (const OperandRef& ref : operands) {
    reorder(ref.operand->stride, 0, ref.operand->stride[m] * c, ref.operand->stride[m]);
  }
  reorder(space.noise_stride, 0, c, 1);
  reorder(space.size, 1, space.size[m] / c, c);
  space.ndim += space.ndim == 2 ? 2 : 1;
  for (int d = 0; d < space.ndim; ++d) space.size_divisor[d] = divisor(space.size[d]);
  return true;
}

// The number of elements of a four-channel latent that two neighbouring threads hold: 4 whole
// pixels.
constexpr int kElementsOfThreadPair = 16;

// The kernel that handles a call.
struct KernelChoice {
  Access access;
  // Whether this is the kernel for default options. That kernel supports no tensor that is
  // broadcast along vectors.
  bool is_default;
  // Whether the call may take the fast path of that kernel: every tensor is present, and views have
  // kFastDims dimensions.
  bool has_fast_path;
};

// The inputs of the kernel choice in addition to the tensors' layouts.
struct CallShape {
  bool is_default = false;           // has default options
  bool has_rows = false;             // has a value for each row
  bool has_misaligned_rows = false;  // rows are single elements, and their values are not aligned
  bool has_all_operands = false;     // has every tensor that a fast path reads or writes
  bool draws_noise = false;          // computes noise from a key
  bool has_channels_last = true;     // has kernels for Access::kChannelsLast
  int64_t samples = 1;
};

// Selects the kernel for a call. `operands` are the operands that are present. The function may
// rewrite the space and the operands' strides (see `try_channels_last`). It sets
// `Space::pixel_pairs` if `store_pixels` can store the results.
template <typename S>
KernelChoice select_kernel(Space& space, const std::vector<OperandRef>& operands,
                           const CallShape& call) {
  constexpr int v = kVector<S, Access::kStrided>, c = kChunk<S, Access::kStrided>;
  const auto all = [&](auto predicate) {
    return std::all_of(operands.begin(), operands.end(), predicate);
  };
  const KernelChoice scalar{Access::kScalar, false, false};
  const int inner = space.ndim - 1;
  const auto expands = [&](const OperandRef& ref) {
    return !ref.written && std::count(ref.operand->stride, ref.operand->stride + space.ndim, 0) > 0;
  };
  if (!kGeneralHasVectors<S> &&
      (!call.is_default || std::any_of(operands.begin(), operands.end(), expands))) {
    return scalar;
  }
  const auto broadcasts_inner = [&](const OperandRef& ref) {
    return !ref.written && ref.operand->stride[inner] == 0;
  };
  const bool vectors_aligned = all([&](const OperandRef& ref) {
    return broadcasts_inner(ref) || is_aligned(ref.operand->data, int64_t{ref.bytes} * v);
  });
  if (call.has_misaligned_rows || (space.ndim > 1 && !space.has_32_bit_offsets)) return scalar;
  if (call.samples > 1 && (space.rows * space.cols % v != 0 || !all([](const OperandRef& ref) {
                             return !ref.step || *ref.step % v == 0;
                           }))) {
    return scalar;
  }
  // If all tensors are contiguous, the space has one dimension, whose size need not be a multiple
  // of v.
  const auto vectors = [&](const int64_t* stride, bool is_contiguous) {
    return space.ndim == 1 ? is_contiguous : has_whole_runs(space, stride, v);
  };
  const bool whole = space.ndim == 1 || space.size[inner] % v == 0;
  if (whole && vectors_aligned && all([&](const OperandRef& ref) {
        return broadcasts_inner(ref) || vectors(ref.operand->stride, ref.operand->is_contiguous);
      }) &&
      (!call.draws_noise || vectors(space.noise_stride, space.has_contiguous_noise))) {
    const bool is_default =
        call.is_default && !std::any_of(operands.begin(), operands.end(), broadcasts_inner);
    const bool is_complete = is_default && call.has_all_operands;
    if (is_complete && space.ndim == 1) return {Access::kContiguous, true, true};
    const bool has_fast_dims =
        space.ndim == kFastDims<Access::kStrided> && space.has_contiguous_noise;
    return {Access::kStrided, is_default, is_complete && has_fast_dims};
  }
  constexpr int channels = kVector<S, Access::kChannelsLast>,
                pixels = kChunk<S, Access::kChannelsLast>;
  static_assert(pixels == c);
  if (!call.has_channels_last || call.samples > 1 ||
      !try_channels_last(space, operands, call.has_rows, channels, pixels)) {
    return scalar;
  }
  const bool is_default = call.is_default && all([&](const OperandRef& ref) {
                            return ref.operand->stride[space.ndim - 2] == 1;
                          });
  const bool has_fast_path =
      is_default && call.has_all_operands && space.ndim == kFastDims<Access::kChannelsLast>;
  // Two threads hold the four channels of a pixel. Tiles must begin with the first of these two
  // threads and end where a warp ends.
  constexpr int warp_elements = 32 * kStep<S, Access::kChannelsLast>;
  space.pixel_pairs =
      has_fast_path && sizeof(S) == 2 && space.size[2] == 4 && space.cols % warp_elements == 0 &&
      all([&](const OperandRef& ref) {
        const int64_t* const stride = ref.operand->stride;
        return !ref.written || (stride[3] == 4 && stride[0] % kElementsOfThreadPair == 0 &&
                                is_aligned(ref.operand->data, 16));
      });
  return {Access::kChannelsLast, is_default, has_fast_path};
}

// Kernels have one slot for the noise offset, so the strides of an explicit eps replace the strides
// of the noise stream. Call this after `select_kernel`, which reads both sets of strides.
inline void set_noise_strides(Space& space, const Operand& eps) {
  if (eps.data) std::copy_n(eps.stride, kMaxDims, space.noise_stride);
}

// The number of blocks that fills any GPU. Tests set it to a small number.
#if !defined(VAE_FUSED_ENOUGH_BLOCKS)
#define VAE_FUSED_ENOUGH_BLOCKS 2048
#endif

// Returns how many of a call's tiles are merged into one larger tile. If a call has more tiles than
// are needed to fill any GPU, its tiles are merged, because a block executes about 130 instructions
// per thread that do not depend on the number of elements. That is 16 instructions per element if a
// thread has 8 elements. The result depends only on the number of tiles.
inline int64_t tiles_to_merge(int64_t tiles) { return (tiles - 1) / VAE_FUSED_ENOUGH_BLOCKS + 1; }

// Merges tiles. If tiles consist of whole rows, merging does not change the order of summation
// within a row. `max_merged` then bounds the number of tiles that are merged into one, for sums
// that are staged in shared memory. The default is safe because row_in_tile is exact for up to 1024
// merged tiles.
inline void merge_tiles(Space& space, int64_t max_merged = 512) {
  const int64_t count = tiles_to_merge(space.tiles);
  if (space.tiles_per_row > 1) {
    const int64_t merged = std::min(count, space.tiles_per_row);
    space.tile *= merged;
    space.tiles_per_row = (space.tiles_per_row - 1) / merged + 1;
    space.tiles_per_row_divisor = divisor_of(static_cast<uint32_t>(space.tiles_per_row));
    space.tiles = space.rows * space.tiles_per_row;
  } else {
    space.rows_per_tile *= std::min(count, max_merged);
    space.tiles = (space.rows - 1) / space.rows_per_tile + 1;
  }
}

// Calls visit(S{}), where S is the storage type of the call's tensors.
template <typename Visit>
cudaError_t with_storage(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::kFloat32:
      return visit(float{});
    case DType::kFloat64:
      return visit(double{});
    case DType::kFloat16:
      return visit(math::Half{});
    default:
      return visit(math::BFloat16{});
  }
}

// Calls launch(access, is_default) with the template arguments of the chosen kernel as constants.
template <typename S, typename Launch>
cudaError_t with_kernel(const KernelChoice& choice, const Launch& launch) {
  constexpr std::integral_constant<Access, Access::kContiguous> contiguous;
  constexpr std::integral_constant<Access, Access::kStrided> strided;
  constexpr std::integral_constant<Access, Access::kChannelsLast> channels_last;
  constexpr std::integral_constant<Access, Access::kScalar> scalar;
  constexpr std::true_type with_defaults;
  constexpr std::false_type general;
  if (choice.access == Access::kScalar) return launch(scalar, general);
  if (choice.access == Access::kContiguous) return launch(contiguous, with_defaults);
  const bool is_channels_last = choice.access == Access::kChannelsLast;
  if constexpr (kGeneralHasVectors<S>) {
    if (!choice.is_default)
      return is_channels_last ? launch(channels_last, general) : launch(strided, general);
  }
  return is_channels_last ? launch(channels_last, with_defaults) : launch(strided, with_defaults);
}

}  // namespace vae_fused::cuda
