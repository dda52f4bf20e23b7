// What crosses from csrc/torch to the kernels: plain structs, how both kinds of kernel read them,
// and two entry points for each device. No torch, no CUDA: a kernel can be built and tested without
// either.
#pragma once

#include <cstddef>

#include "math/family.h"

namespace vae_fused {

// The dtype of mu, logvar, z, eps and their gradients. Arithmetic is double for kFloat64, else
// float.
enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

// ---------------------------------------------------------------------------------------------
// Noise
// ---------------------------------------------------------------------------------------------

// The key (seed, offset) of the call, by value or by pointer: a key tensor lives on the device, and
// so does the state of a CUDA generator during graph capture, of which each replay reads a new
// value.
//
//   seed   = seed_ptr ? *seed_ptr : seed
//   offset = ((offset_ptr ? *offset_ptr : 0) + offset) >> shift
//
// `shift` turns a CUDA generator's offset, counted in words, into Philox blocks of four.
struct RngKey {
  const uint64_t* seed_ptr = nullptr;
  const uint64_t* offset_ptr = nullptr;
  uint64_t seed = 0;
  uint64_t offset = 0;
  uint32_t shift = 0;
};

struct Key {
  uint64_t seed, offset;
};

VAE_FUSED_HD Key resolve(const RngKey& key) {
  return {key.seed_ptr ? *key.seed_ptr : key.seed,
          ((key.offset_ptr ? *key.offset_ptr : 0) + key.offset) >> key.shift};
}

// ---------------------------------------------------------------------------------------------
// Iteration space
// ---------------------------------------------------------------------------------------------

constexpr int kMaxDims = 16;
constexpr int kMaxBindings = 12;  // tensors that a call walks: what backward has at most
// Elements of a tile, the unit of work of a CPU task; of a CUDA block, one or several.
constexpr int kTile = 2048;

// The tiles of a row that shares none with another.
inline int64_t tiles_of(int64_t elements) { return (elements + kTile - 1) / kTile; }

// Division of 0 <= n < 2^(B-1) by an invariant d, W a word of B bits (Granlund and Montgomery 1994,
// with n doubled so that the multiplier fits a word for every d):
//
//   l = ceil(log2 d),  m = floor(2^(B-1 + l) / d) + 1,  n / d = 2n m / 2^B / 2^l
//
// m d exceeds 2^(B-1 + l) by e <= d <= 2^l, so n m / 2^(B-1 + l) exceeds n / d by less than 1 / d.
// About 15 instructions of 64 bits on a GPU, where dividing would be a call with a stack frame, and
// 3 of 32.
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

// For both words; the smaller one is for n, d < 2^31.
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

// Elements are visited in "flat" order: the kept dimensions first, then the summed ones, so that
// flat element e belongs to row e / cols of the KL. Neighbouring dimensions that every operand can
// merge are merged; size 1 is dropped. The usual shapes end with one dimension, chunked ones with
// two.
//
// The tiling depends on the shape alone, never on threads or SMs: it fixes the order of summation.
//   cols <= kTile:  a tile is `rows_per_tile` whole rows;   tiles_per_row = 1
//   cols >  kTile:  a row is `tiles_per_row` tiles of `tile` elements;   rows_per_tile = 1
struct Space {
  int32_t ndim = 0;
  int64_t size[kMaxDims] = {};  // outermost first
  Divisor by_size[kMaxDims];
  // Of a coordinate, in the row-major index i of z; in CUDA kernels of an explicit eps, if given.
  int64_t noise_stride[kMaxDims] = {};
  bool noise_linear = false;  // i == e everywhere
  bool small = false;         // elements and offsets are all below 2^31
  bool pixel_pairs = false;   // in CUDA kernels: patches are written by `store_pixels`
  int64_t rows = 0, cols = 0;
  int64_t rows_per_tile = 0, tiles_per_row = 0, tiles = 0;
  int64_t tile = kTile;
  DivisorOf<uint32_t> by_tiles_per_row;  // of the number of a tile
  uint32_t by_cols = 0;  // ceil(2^32 / cols) where 1 < cols <= kTile: see row_in_tile
};

// The flat elements of a tile, and its rows.
struct Tile {
  int64_t begin, row;
  int n, rows;
};

// Tile `part` of a row that consists of tiles.
VAE_FUSED_HD Tile tile_of_row(const Space& space, int64_t row, uint32_t part) {
  const int64_t col = static_cast<int64_t>(uint64_t{part} * static_cast<uint32_t>(space.tile));
  const int64_t rest = space.cols - col;
  return {row * space.cols + col, row, static_cast<int>(rest < space.tile ? rest : space.tile), 1};
}

// Tile t of those that consist of whole rows.
VAE_FUSED_HD Tile tile_of_rows(const Space& space, int64_t t) {
  const int64_t row = t * space.rows_per_tile;
  const int64_t rest = space.rows - row;
  const int rows = static_cast<int>(rest < space.rows_per_tile ? rest : space.rows_per_tile);
  return {row * space.cols, row, rows * static_cast<int>(space.cols), rows};
}

VAE_FUSED_HD Tile tile_at(const Space& space, int64_t t) {
  if (space.tiles_per_row == 1) return tile_of_rows(space, t);
  return tile_of_row(space, t / space.tiles_per_row,
                     static_cast<uint32_t>(t % space.tiles_per_row));
}

// The row of element `at` of a tile, counted from the tile's first. For whole rows of more than one
// column; exact while at * cols < 2^32.
VAE_FUSED_HD uint32_t row_in_tile(const Space& space, uint32_t at) {
  return math::mulhi(at, space.by_cols);
}

// A tensor over the iteration space; null when the call has none. Strides in elements.
struct Operand {
  void* data = nullptr;
  int64_t stride[kMaxDims] = {};
  bool linear = false;  // element e lies at data[e]
};

// ---------------------------------------------------------------------------------------------
// Calls
// ---------------------------------------------------------------------------------------------

// The Gaussians of a call.
struct Gaussians {
  math::Family<double> family;
  Operand mu;
  Operand raw;                    // what sigma is a function of; absent: sigma = 1
  Operand prior_mean, prior_raw;  // absent: the family's numbers
  Operand mask;                   // bytes, 0 or 1; absent: 1 everywhere
  int64_t samples = 1;            // sample s of element i has normal s * numel + i of the stream
};

// Whether the kernels of math::Plain serve them, but for a mask.
inline bool is_plain(const Gaussians& of) {
  return of.raw.data && !of.prior_mean.data && !of.prior_raw.data && of.samples == 1 &&
         math::is_plain(of.family);
}

// A tensor with a value for each sample: sample s lies `step` elements behind sample s - 1.
struct Sampled : Operand {
  int64_t step = 0;
};

// z = mu + T sigma eps and kl[row] = kl_scale * sum over the row of the KL. Either may be absent.
struct ForwardParams {
  DType dtype = DType::kFloat32;
  Space space;
  RngKey key;
  Gaussians of;
  Sampled eps;         // explicit noise instead of the key
  Sampled z;           // absent: no sample
  void* kl = nullptr;  // [rows], float, or double for kFloat64; absent: no KL
  double kl_scale = 1.0;
  double* partials = nullptr;   // [tiles], sums of twice the KL, wanted when tiles_per_row > 1
  uint64_t* key_out = nullptr;  // [2], the key that was used; absent: not asked for
};

// Gradients of `sum(grad_z * z) + sum(grad_kl * kl)`.
struct BackwardParams {
  DType dtype = DType::kFloat32;
  Space space;
  RngKey key;
  Gaussians of;
  Sampled eps;
  Sampled grad_z;                 // absent: z was not used
  const void* grad_kl = nullptr;  // [rows], dtype as kl; absent: the KL was not used
  int64_t grad_kl_stride = 1;     // 0: one value for all rows
  double kl_scale = 1.0;
  Operand grad_mu, grad_raw, grad_prior_mean, grad_prior_raw;  // absent: not required
  Sampled grad_eps;
};

// A list of contiguous tensors, each against the same fixed prior, in one launch: kl is the sum of
// their KLs, each times its weight. Tensor k's noise begins at block first_block of the stream.
constexpr int kMaxItems = 256;  // 22 KiB of a kernel's parameters, which may have 32

struct Item {
  const void *mu = nullptr, *raw = nullptr;
  void* z = nullptr;             // forward
  const void* grad_z = nullptr;  // backward; absent: z was not used
  void *grad_mu = nullptr, *grad_raw = nullptr;
  int64_t n = 0, first_tile = 0;
  uint64_t first_block = 0;
  double weight = 1.0;
};

struct MultiParams {
  DType dtype = DType::kFloat32;
  RngKey key;
  math::Family<double> family;
  int32_t items = 0;
  int64_t tiles = 0;
  int64_t tile = kTile;           // on a GPU a multiple of it
  void* kl = nullptr;             // [1], forward
  double* partials = nullptr;     // [tiles], forward: sums in a unit of the kernel's own
  uint64_t* key_out = nullptr;    // [2], forward; absent: not asked for
  const void* grad_kl = nullptr;  // [1], backward; absent: the KL was not used
  Item item[kMaxItems];
};

namespace cpu {

// Runs body(context, begin, end) over [0, n) on ATen's pool; csrc/torch passes it in.
using Body = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t n, int64_t grain, Body body, void* context);

void forward(const ForwardParams& params, ParallelFor parallel_for);
void backward(const BackwardParams& params, ParallelFor parallel_for);
void forward_multi(const MultiParams& params, ParallelFor parallel_for);
void backward_multi(const MultiParams& params, ParallelFor parallel_for);

// For memory that a kernel is about to be the first to write.
void prepare_pages(void* data, size_t bytes);

// The instruction set in use: avx512, avx2 or default. Throws std::invalid_argument if
// VAE_FUSED_CPU_CAPABILITY asks for another, or for one that is not to be had here.
const char* capability_name();

}  // namespace cpu

namespace cuda {

// `stream` is a cudaStream_t; returns a cudaError_t. One launch each.
int forward(const ForwardParams& params, void* stream);
int backward(const BackwardParams& params, void* stream);
int forward_multi(const MultiParams& params, void* stream);
int backward_multi(const MultiParams& params, void* stream);
const char* error_string(int error);
// Whether the error is one that a launch cannot cause, only report: a kernel that was launched
// before, by anyone, has failed since.
bool is_of_earlier_work(int error);

}  // namespace cuda

}  // namespace vae_fused
