// Loads the inputs of a piece into shared memory, converted to the arithmetic type. A run-time
// switch selects the target's dtype. The thread block also collects the slots of nonzero counts.
//
// Between 88 and 98 % of the counts are 0. Only nonzero counts need the logarithm of a factorial. A
// warp rarely has only zeros (2 % of warps do if 89 % of the counts are 0), so skipping warps would
// save almost nothing. Instead, the block computes the terms of the collected counts with all lanes
// in use. Each result has its own slot, so the order of the list does not matter.
#pragma once

#include "cuda/likelihood/kinds.cuh"
#include "cuda/likelihood/piece.cuh"

namespace vae_fused::cuda {

template <class L, typename T>
struct Inputs {
  alignas(16) T in[L::kInputs][kSlots<T>];  // backward overwrites them with gradients
  alignas(16) T factor[kSlots<T>];          // the weight, or in backward the gradient of the term
  alignas(16) T added[L::kIsCount ? kSlots<T> : 1];  // the terms that nonzero counts add
  alignas(16) uint8_t mask[kSlots<T>];
  uint16_t list[L::kIsCount ? kSlots<T> : 1];  // the slots of nonzero counts
  int count;
};

// A kernel that computes values and gradients also stores the terms that nonzero counts add to the
// values.
template <class L, typename T, bool kWithValues>
struct BackwardInputs : Inputs<L, T> {};
template <class L, typename T>
struct BackwardInputs<L, T, true> : Inputs<L, T> {
  T count_terms[kCountHasGradient<L> ? kSlots<T> : 1];
};

template <typename T, typename E>
__device__ __forceinline__ T as_arithmetic(E x) {
  if constexpr (std::is_integral_v<E>) {
    return static_cast<T>(x);
  } else {
    return static_cast<T>(math::widen(x));
  }
}

template <int V, typename T>
__device__ __forceinline__ void read_target(const Space& space, const Observations& observations,
                                            int64_t at, Pack<T, V>& out) {
  const auto as = [&](auto e) {
    Pack<decltype(e), V> pack;
    read(space, observations.target, at, pack);
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) out.s[j] = as_arithmetic<T>(pack.s[j]);
  };
  switch (observations.target_type) {
    case TargetType::kFloat32:
      return as(float{});
    case TargetType::kFloat64:
      return as(double{});
    case TargetType::kFloat16:
      return as(math::Half{});
    case TargetType::kBFloat16:
      return as(math::BFloat16{});
    case TargetType::kUInt8:
      return as(uint8_t{});
    case TargetType::kInt32:
      return as(int32_t{});
    default:
      return as(int64_t{});
  }
}

// Appends a slot to the list if `is_count`. All lanes of a warp must call this function, including
// those without a count.
template <class L, typename T>
__device__ __forceinline__ void collect(bool is_count, int slot, Inputs<L, T>& inputs) {
  const unsigned int lane = threadIdx.x & 31;
  const unsigned int counts = __ballot_sync(0xFFFFFFFFu, is_count);
  int begin = 0;
  if (lane == 0 && counts != 0) begin = atomicAdd(&inputs.count, __popc(counts));
  begin = __shfl_sync(0xFFFFFFFFu, begin, 0);
  const unsigned int before = counts & ((1u << lane) - 1);
  if (is_count) inputs.list[begin + __popc(before)] = static_cast<uint16_t>(slot);
}

// Whether the call has a gradient of each term, as only backward calls do.
template <class Params>
constexpr bool kHasGrad = std::is_same_v<Params, NllBackwardParams>;

// The order of a step's offsets: the outputs, the target, and then these operands.
template <class L>
struct OperandOrder {
  static constexpr int kMask = kTarget<L> + 1, kWeight = kMask + 1, kMax = kWeight + 1,
                       kShift = kMax + 1, kGrad = kShift + 1, kCount = kGrad + 1;
};

// Loads a step of a piece from its offsets into its slots.
template <class L, typename S, int V, class Params>
__device__ __forceinline__ void stage_step(const Params& p,
                                           const int64_t (&at)[OperandOrder<L>::kCount], int slot,
                                           Inputs<L, arithmetic_t<S>>& inputs) {
  using T = arithmetic_t<S>;
  using Order = OperandOrder<L>;
  constexpr int kOutputs = kTarget<L>;
  const Observations& observations = p.observations;
  const Operand* const outputs[] = {&observations.output, &observations.second,
                                    &observations.third};

  // All loads come first. The target is loaded last, because the switch on its dtype waits for the
  // load.
  Pack<S, V> raw[kOutputs];
  Pack<T, V> x[L::kInputs], largest, shift, weight{}, grad, factor;
  Pack<uint8_t, V> mask;
  // For an absent output, the first output is read again, and the result is set to 0 below. Setting
  // it to 0 here would make the compiler unpack 16-bit values after each load, before it issues the
  // next load.
  VAE_FUSED_UNROLL
  for (int k = 0; k < kOutputs; ++k) {
    const bool is_present = outputs[k]->data;
    read(p.space, is_present ? *outputs[k] : observations.output, is_present ? at[k] : at[0],
         raw[k]);
  }
  VAE_FUSED_UNROLL
  for (int j = 0; j < V; ++j) mask.s[j] = 1;
  if (observations.mask.data) read(p.space, observations.mask, at[Order::kMask], mask);
  if (observations.weight.data) read(p.space, observations.weight, at[Order::kWeight], weight);
  if (observations.row_max.data) read(p.space, observations.row_max, at[Order::kMax], largest);
  if (observations.row_shift.data) read(p.space, observations.row_shift, at[Order::kShift], shift);
  if constexpr (kHasGrad<Params>) {
    VAE_FUSED_UNROLL
    for (int j = 0; j < V; ++j) grad.s[j] = T(1);
    if (p.grad.data) read(p.space, p.grad, at[Order::kGrad], grad);
  }
  read_target(p.space, observations, at[kOutputs], x[kOutputs]);

  VAE_FUSED_UNROLL
  for (int j = 0; j < V; ++j) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < kOutputs; ++k) {
      x[k].s[j] = outputs[k]->data ? math::widen(raw[k].s[j]) : T(0);
    }
    if (observations.row_max.data) x[0].s[j] -= largest.s[j];
    if (observations.row_shift.data) x[0].s[j] += shift.s[j];
    if constexpr (kHasGrad<Params>) {
      factor.s[j] = static_cast<T>(p.factor) * grad.s[j];
      if (observations.weight.data) factor.s[j] *= weight.s[j];
      if (!mask.s[j]) factor.s[j] = 0;
    } else {
      factor.s[j] = weight.s[j];
    }
  }
  VAE_FUSED_UNROLL
  for (int k = 0; k < L::kInputs; ++k) {
    *reinterpret_cast<Pack<T, V>*>(&inputs.in[k][slot]) = x[k];
  }
  if (kHasGrad<Params> || observations.weight.data) {
    *reinterpret_cast<Pack<T, V>*>(&inputs.factor[slot]) = factor;
  }
  if (observations.mask.data) *reinterpret_cast<Pack<uint8_t, V>*>(&inputs.mask[slot]) = mask;
}

// Loads a piece. The function ends with a barrier.
template <class L, typename S, class Params>
__device__ __forceinline__ void stage(const Params& p, bool vectors, const Piece& piece,
                                      Inputs<L, arithmetic_t<S>>& inputs) {
  using Order = OperandOrder<L>;
  const Observations& observations = p.observations;
  const Operand* const outputs[] = {&observations.output, &observations.second,
                                    &observations.third};
  const int64_t* strides[Order::kCount];
  VAE_FUSED_UNROLL
  for (int k = 0; k < kTarget<L>; ++k) strides[k] = outputs[k]->stride;
  strides[kTarget<L>] = observations.target.stride;
  strides[Order::kMask] = observations.mask.stride;
  strides[Order::kWeight] = observations.weight.stride;
  strides[Order::kMax] = observations.row_max.stride;
  strides[Order::kShift] = observations.row_shift.stride;
  if constexpr (kHasGrad<Params>) {
    strides[Order::kGrad] = p.grad.stride;
  } else {
    strides[Order::kGrad] = observations.target.stride;  // unused, as forward has no gradient
  }
  for_each_step<S>(p.space, piece, vectors, strides, [&](int slot, const auto& at, auto v) {
    stage_step<L, S, decltype(v)::value>(p, at, slot, inputs);
  });
  __syncthreads();
}

// Reads the inputs of an element.
template <class L, typename T>
__device__ __forceinline__ void inputs_at(const Inputs<L, T>& inputs, int slot,
                                          T (&x)[L::kInputs]) {
  VAE_FUSED_UNROLL
  for (int k = 0; k < L::kInputs; ++k) x[k] = inputs.in[k][slot];
}

// Empties the list. The thread block needs a barrier before it appends to the list again.
template <class L, typename T>
__device__ __forceinline__ void clear_list(Inputs<L, T>& inputs) {
  if (threadIdx.x == 0) inputs.count = 0;
}

// Sets `added` to compute(x, slot) for the counts of a piece that are neither 0 nor masked. All
// threads can read `added` when the function returns.
template <class L, typename T, typename Compute>
__device__ __forceinline__ void add_counts(const Observations& observations, const Piece& piece,
                                           Inputs<L, T>& inputs, const Compute& compute) {
#pragma unroll 1
  for (int j = 0; j < kSlotsOfThread<T>; ++j) {
    const int slot = threadIdx.x + j * kThreads;
    const bool is_unmasked = piece.has(slot) && (!observations.mask.data || inputs.mask[slot]);
    collect(is_unmasked && inputs.in[kTarget<L>][slot] != T(0), slot, inputs);
  }
  __syncthreads();
  const int count = inputs.count;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int slot = inputs.list[i];
    T x[L::kInputs];
    inputs_at(inputs, slot, x);
    inputs.added[slot] = compute(x, slot);
  }
  __syncthreads();
  clear_list(inputs);
}

}  // namespace vae_fused::cuda
