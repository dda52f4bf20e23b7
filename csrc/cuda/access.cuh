// How a call's tensors are accessed, and which kernel does it: decided on the host, for all tensors
// of a call at once, so that no thread ever looks at a layout or an alignment.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cuda/policy.cuh"

namespace vae_fused::cuda {

// A tensor of a call, as far as its layout matters.
struct Layout {
  Operand* operand;
  int bytes;         // of an element
  bool written;      // else a value may be broadcast along a vector
  int64_t step = 0;  // from a sample to the next

  bool present() const { return operand->data; }
};

// Whether the innermost runs of a tensor consist of whole vectors.
inline bool whole_runs(const Space& space, const int64_t* stride, int v) {
  const int inner = space.ndim - 1;
  if (stride[inner] != 1 || space.size[inner] % v != 0) return false;
  for (int d = 0; d < inner; ++d) {
    if (stride[d] % v != 0) return false;
  }
  return true;
}

inline bool aligned(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % std::min<int64_t>(bytes, 16) == 0;
}

// channels_last: what is contiguous in memory (the channels, i) is not what is contiguous in the
// noise (the pixels, m). Then the flat order becomes (..., m / c, i, c) for noise in blocks of c: a
// step is a patch of v = 2 channels by c pixels, which takes c small vectors from memory and two
// whole blocks of noise. Larger vectors would leave most threads of a tile without a step, and
// exclude 16-bit latents of 4 channels. A single image is given the dimension of images that it
// lacks. False, and nothing is changed, if the tensors are not like that, or if the order of kept
// dimensions, which is that of the KL's rows, would change.
inline bool patch(Space& space, const std::vector<Layout>& layouts, bool rows, int v, int c) {
  const auto splats = [](const Layout& l, int d) {
    return !l.written && l.operand->stride[d] == 0;
  };
  const auto is_inner = [&](int d) {
    return space.size[d] % v == 0 && std::all_of(layouts.begin(), layouts.end(), [&](Layout l) {
             return l.operand->stride[d] == 1 || splats(l, d);
           });
  };
  int i = -1, m = -1;
  const bool no_rows = !rows && space.cols == 1;
  int64_t covered = 1;
  for (int d = space.ndim - 1; d >= 0; --d) {
    covered *= space.size[d];
    if (covered > space.cols && !no_rows) break;
    if (is_inner(d)) i = d;
    if (space.noise_stride[d] == 1 && space.size[d] % c == 0) m = d;
  }
  if (i < 0 || m < 0 || i == m || space.ndim + 1 > kMaxDims) return false;
  for (const Layout& l : layouts) {
    if (!splats(l, i) && !aligned(l.operand->data, int64_t{l.bytes} * v)) return false;
  }
  for (int d = 0; d < space.ndim; ++d) {
    if (d != m && space.noise_stride[d] % c != 0) return false;
    for (const Layout& l : layouts) {
      if (d != i && !splats(l, i) && l.operand->stride[d] % v != 0) return false;
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
  for (const Layout& l : layouts) {
    reorder(l.operand->stride, 0, l.operand->stride[m] * c, l.operand->stride[m]);
  }
  reorder(space.noise_stride, 0, c, 1);
  reorder(space.size, 1, space.size[m] / c, c);
  space.ndim += space.ndim == 2 ? 2 : 1;
  for (int d = 0; d < space.ndim; ++d) space.by_size[d] = divisor(space.size[d]);
  return true;
}

// Elements that two neighbouring threads have of latents of four channels: 4 whole pixels.
constexpr int kOfTwoThreads = 16;

// Double has vectors for the plain call alone. Elements of 8 bytes are coalesced as well as vectors
// are, and the general family's kernels for vectors of double were a fifth of the binary: with them
// sm_120 had 4.9 MB.
template <typename S>
constexpr bool kVectorsOfFamily = sizeof(S) < 8;

// How to go through a call, whether the plain kernels can, and whether by what they have for the
// usual calls: every tensor is there, and views have the usual dimensions.
struct Way {
  Access access;
  bool plain, usual;
};

// What a call asks for, beside its tensors' layouts.
struct Asked {
  bool rows = false;             // has a value for each row
  bool rows_misaligned = false;  // which are elements, and not aligned as vectors
  bool complete = false;         // has every tensor that a plain kernel knows
  bool key_noise = false;        // draws noise
  bool noise_tensor = false;     // has eps, or its gradient
};

// `layouts` are those of all tensors but the Gaussians' own. May rewrite the space and the
// operands' strides, see `patch`, and says in the space whether `store_pixels` can store patches.
template <typename S>
Way way_of(Space& space, Gaussians& of, std::vector<Layout> layouts, const Asked& asked) {
  constexpr int v = kVector<S, Access::kStrided>, c = kChunk<S, Access::kStrided>;
  layouts.insert(layouts.end(), {{&of.mu, sizeof(S), false},
                                 {&of.raw, sizeof(S), false},
                                 {&of.prior_mean, sizeof(S), false},
                                 {&of.prior_raw, sizeof(S), false},
                                 {&of.mask, 1, false}});
  layouts.erase(
      std::remove_if(layouts.begin(), layouts.end(), [](const Layout& l) { return !l.present(); }),
      layouts.end());
  const auto all = [&](auto predicate) {
    return std::all_of(layouts.begin(), layouts.end(), predicate);
  };
  const bool is_plain_call = is_plain(of) && !of.mask.data && !asked.noise_tensor;
  const Way scalar{Access::kScalar, false, false};
  const int inner = space.ndim - 1;
  const auto expands = [&](const Layout& l) {
    return !l.written && std::count(l.operand->stride, l.operand->stride + space.ndim, 0) > 0;
  };
  if (!kVectorsOfFamily<S> &&
      (!is_plain_call || std::any_of(layouts.begin(), layouts.end(), expands))) {
    return scalar;
  }
  const auto splats = [&](const Layout& l) { return !l.written && l.operand->stride[inner] == 0; };
  const bool vectors_aligned = all(
      [&](const Layout& l) { return splats(l) || aligned(l.operand->data, int64_t{l.bytes} * v); });
  if (asked.rows_misaligned || (space.ndim > 1 && !space.small)) return scalar;
  if (of.samples > 1 &&
      (space.rows * space.cols % v != 0 || !all([](const Layout& l) { return l.step % v == 0; }))) {
    return scalar;
  }
  // Where all is linear there is one dimension, which need not consist of whole vectors.
  const auto vectors = [&](const int64_t* stride, bool linear) {
    return space.ndim == 1 ? linear : whole_runs(space, stride, v);
  };
  const bool whole = space.ndim == 1 || space.size[inner] % v == 0;
  if (whole && vectors_aligned && all([&](const Layout& l) {
        return splats(l) || vectors(l.operand->stride, l.operand->linear);
      }) &&
      (!asked.key_noise || vectors(space.noise_stride, space.noise_linear))) {
    const bool plain = is_plain_call && !std::any_of(layouts.begin(), layouts.end(), splats);
    const bool complete = plain && asked.complete;
    if (complete && space.ndim == 1) return {Access::kLinear, true, true};
    const bool usual = space.ndim == kUsualDims<Access::kStrided>;
    return {Access::kStrided, plain, complete && usual && space.noise_linear};
  }
  constexpr int patch_v = kVector<S, Access::kPatched>, patch_c = kChunk<S, Access::kPatched>;
  static_assert(patch_c == c);
  if (of.samples > 1 || !patch(space, layouts, asked.rows, patch_v, patch_c)) return scalar;
  const bool plain =
      is_plain_call && all([&](const Layout& l) { return l.operand->stride[space.ndim - 2] == 1; });
  const bool usual = plain && asked.complete && space.ndim == kUsualDims<Access::kPatched>;
  // The four channels of a pixel are in two threads; tiles begin with the first, and end with
  // warps.
  constexpr int warp = 32 * kStep<S, Access::kPatched>;
  space.pixel_pairs = usual && sizeof(S) == 2 && space.size[2] == 4 && space.cols % warp == 0 &&
                      all([&](const Layout& l) {
                        const int64_t* const stride = l.operand->stride;
                        return !l.written || (stride[3] == 4 && stride[0] % kOfTwoThreads == 0 &&
                                              aligned(l.operand->data, 16));
                      });
  return {Access::kPatched, plain, usual};
}

// Kernels find noise in one place: where eps is given, its offsets are those of the noise. To be
// called after `way_of`, which reads both.
inline void take_noise_from(Space& space, const Operand& eps) {
  if (eps.data) std::copy_n(eps.stride, kMaxDims, space.noise_stride);
}

#if !defined(VAE_FUSED_ENOUGH_BLOCKS)  // tests set it to a handful
#define VAE_FUSED_ENOUGH_BLOCKS 2048
#endif

// How many of a call's tiles become one larger tile. More than enough tiles to fill any GPU are
// merged, because a block executes some 130 instructions a thread beside its elements, 16 an
// element if a thread has 8. The number follows from that of the tiles alone.
inline int64_t tiles_to_merge(int64_t tiles) { return (tiles - 1) / VAE_FUSED_ENOUGH_BLOCKS + 1; }

// Merges them. The order of summation within a row is the same for any number of tiles that consist
// of whole rows; `most` bounds these where their sums are staged in shared memory.
inline void merge_tiles(Space& space, int64_t most = 512) {  // row_in_tile is exact up to 1024
  const int64_t wanted = tiles_to_merge(space.tiles);
  if (space.tiles_per_row > 1) {
    const int64_t merged = std::min(wanted, space.tiles_per_row);
    space.tile *= merged;
    space.tiles_per_row = (space.tiles_per_row - 1) / merged + 1;
    space.by_tiles_per_row = divisor_of(static_cast<uint32_t>(space.tiles_per_row));
    space.tiles = space.rows * space.tiles_per_row;
  } else {
    space.rows_per_tile *= std::min(wanted, most);
    space.tiles = (space.rows - 1) / space.rows_per_tile + 1;
  }
}

// Calls visit(S{}) with the type that the tensors of a call are stored as.
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

// Calls launch(access, family) with what the kernels for this way are instantiated for.
template <typename S, typename Launch>
cudaError_t with_kernels(const Way& way, const math::Family<double>& family, const Launch& launch) {
  using T = arithmetic_t<S>;
  constexpr std::integral_constant<Access, Access::kLinear> linear;
  constexpr std::integral_constant<Access, Access::kStrided> strided;
  constexpr std::integral_constant<Access, Access::kPatched> patched;
  constexpr std::integral_constant<Access, Access::kScalar> scalar;
  const auto plain = math::plain<T>(family);
  const auto general = math::narrowed<T>(family);
  if (way.access == Access::kScalar) return launch(scalar, general);
  if (way.access == Access::kLinear) return launch(linear, plain);
  const bool patches = way.access == Access::kPatched;
  if constexpr (kVectorsOfFamily<S>) {
    if (!way.plain) return patches ? launch(patched, general) : launch(strided, general);
  }
  return patches ? launch(patched, plain) : launch(strided, plain);
}

}  // namespace vae_fused::cuda
