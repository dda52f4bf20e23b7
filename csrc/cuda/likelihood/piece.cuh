// A piece consists of the elements that a thread block computes together. Each element has a slot
// in shared memory.
#pragma once

#include "cuda/tile.cuh"

namespace vae_fused::cuda {

// 1024 floats, 4 per thread, or 512 doubles, 2 per thread. A thread block of the backward kernel
// for a zero-inflated negative binomial then takes 31 KB of shared memory.
template <typename T>
constexpr int kSlots = 4096 / sizeof(T);
template <typename T>
constexpr int kSlotsOfThread = kSlots<T> / kThreads;

// One line of elements in flat order, or several lines of a matrix.
struct Piece {
  int64_t first;  // the element of slot 0
  int64_t pitch;  // distance between lines, in elements
  int log_width;  // a line has 2^log_width slots
  int lines;
  int n;  // elements per line, in its first slots

  __device__ __forceinline__ int line(int slot) const { return slot >> log_width; }
  __device__ __forceinline__ int column(int slot) const { return slot & ((1 << log_width) - 1); }
  __device__ __forceinline__ bool has(int slot) const {
    return line(slot) < lines && column(slot) < n;
  }
  __device__ __forceinline__ int64_t element(int slot) const {
    return first + line(slot) * pitch + column(slot);
  }
  // Whether the lines consist of whole vectors of v elements that start at multiples of v.
  __device__ __forceinline__ bool is_whole(int v) const { return ((first | n) & (v - 1)) == 0; }
};

// Returns the piece that begins at `first` and ends at `end`, or earlier if all slots are used.
template <typename T>
__device__ __forceinline__ Piece flat_piece(int64_t first, int64_t end) {
  constexpr int kLog = sizeof(T) == 8 ? 9 : 10;
  static_assert(1 << kLog == kSlots<T>);
  const int64_t rest = end - first;
  return {first, 0, kLog, 1, rest < kSlots<T> ? static_cast<int>(rest) : kSlots<T>};
}

// The number of elements that a thread loads and stores together if a call has vectors. Accesses to
// single doubles are coalesced as well as vector accesses are.
template <typename S>
constexpr int kVectorOfPiece = sizeof(S) == 8 ? 1 : kSlotsOfThread<arithmetic_t<S>>;

// Finds the offsets of element e in N tensors. One loop handles any number of dimensions and any
// size. With `locate` from tile.cuh, a kernel would have a third more machine code.
template <int N>
__device__ __forceinline__ void find_offsets(const Space& space, const int64_t* const (&strides)[N],
                                             int64_t e, int64_t (&at)[N]) {
  VAE_FUSED_UNROLL
  for (int k = 0; k < N; ++k) at[k] = 0;
#pragma unroll 1
  for (int d = space.ndim - 1; d >= 0; --d) {
    int64_t outer = 0;
    if (d > 0) {
      outer = space.has_32_bit_offsets
                  ? static_cast<int64_t>(static_cast<uint32_t>(e) / space.size_divisor[d])
                  : e / space.size_divisor[d];
    }
    const int64_t coordinate = e - outer * space.size[d];
    VAE_FUSED_UNROLL
    for (int k = 0; k < N; ++k) at[k] += coordinate * strides[k][d];
    e = outer;
  }
}

// Calls visit(slot, at, V) for each of the thread's steps that has elements. `at` holds the step's
// offsets in N tensors, and V is the number of elements in the step, as a constant.
template <typename S, int N, typename Visit>
__device__ __forceinline__ void for_each_step(const Space& space, const Piece& piece, bool vectors,
                                              const int64_t* const (&strides)[N],
                                              const Visit& visit) {
  constexpr int V = kVectorOfPiece<S>, kSlots = kSlotsOfThread<arithmetic_t<S>>;
  const bool is_vector = V > 1 && vectors && piece.is_whole(V);
  const int last = is_vector ? 1 : kSlots;
#pragma unroll 1
  for (int j = 0; j < last; ++j) {
    const int slot = is_vector ? threadIdx.x * V : threadIdx.x + j * kThreads;
    if (!piece.has(slot)) continue;
    int64_t at[N];
    find_offsets(space, strides, piece.element(slot), at);
    if (is_vector) {
      visit(slot, at, std::integral_constant<int, V>{});
    } else {
      visit(slot, at, std::integral_constant<int, 1>{});
    }
  }
}

// Calls visit(slot) for those slots of the thread that have elements. Neighbouring threads have
// neighbouring slots. If lines have at most kThreads slots, all slots of a thread are in one
// column.
template <typename T, typename Visit>
__device__ __forceinline__ void for_each_slot(const Piece& piece, const Visit& visit) {
#pragma unroll 1
  for (int j = 0; j < kSlotsOfThread<T>; ++j) {
    const int slot = threadIdx.x + j * kThreads;
    if (piece.has(slot)) visit(slot);
  }
}

// Whether all operands of a call can be accessed as vectors: contiguous in whole aligned vectors,
// or broadcast.
template <typename S>
bool has_vectors(const Space& space, const std::vector<OperandRef>& operands) {
  constexpr int V = kVectorOfPiece<S>;
  for (const OperandRef& ref : operands) {
    const int64_t* const stride = ref.operand->stride;
    if (!ref.written && stride[space.ndim - 1] == 0) continue;
    const bool is_whole =
        space.ndim == 1 ? ref.operand->is_contiguous : has_whole_runs(space, stride, V);
    if (!is_whole || !is_aligned(ref.operand->data, int64_t{ref.bytes} * V)) return false;
  }
  return space.ndim == 1 || space.size[space.ndim - 1] % V == 0;
}

// Reads a step of an operand of any dtype E. One value may be broadcast to all elements of a
// vector.
template <int V, typename E>
__device__ __forceinline__ void read(const Space& space, const Operand& operand, int64_t at,
                                     Pack<E, V>& pack) {
  const E* const data = static_cast<const E*>(operand.data) + at;
  if (V > 1 && operand.stride[space.ndim - 1] == 0) {
    const E value = *data;
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) pack.s[j] = value;
  } else {
    pack = *reinterpret_cast<const Pack<E, V>*>(data);
  }
}

}  // namespace vae_fused::cuda
