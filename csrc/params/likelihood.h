// The interface between csrc/torch and the kernels of the likelihood family: see params/latent.h.
#pragma once

#include "iteration/rows.h"
#include "iteration/space.h"
#include "math/likelihood/options.h"
#include "params/device.h"

namespace vae_fused {

// The dtype of a target. Kernels convert targets when they load them, because pixels and counts are
// often integers.
enum class TargetType : int32_t {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kUInt8,
  kInt32,
  kInt64,
};

constexpr int size_of(TargetType type) {
  switch (type) {
    case TargetType::kUInt8:
      return 1;
    case TargetType::kFloat16:
    case TargetType::kBFloat16:
      return 2;
    case TargetType::kFloat32:
    case TargetType::kInt32:
      return 4;
    default:
      return 8;
  }
}

// The size in bytes of an element in the arithmetic dtype.
constexpr int arithmetic_size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// The inputs of forward and backward calls. Operands that a call does not have are absent.
struct Observations {
  LikelihoodKind kind = LikelihoodKind::kBernoulli;
  math::LikelihoodOptions<double> options;
  Operand output, second, third;  // the decoder's outputs, in the order of the kind
  Operand target;
  TargetType target_type = TargetType::kFloat32;
  Operand mask;    // bytes, 0 or 1
  Operand weight;  // in the dtype of the arithmetic, like row_max and row_shift
  // With a softmax the logarithm of the mean is (output - row_max) + row_shift. The shift includes
  // the library.
  Operand row_max, row_shift;
};

// The KL term of an evidence lower bound. The row sums of nll are the reconstruction term of the
// bound, and k is the KL of a sample. Either a single result r sums over all samples, or each
// sample has its own result:
//
//   kl[r] = factor * sum of k       loss[r] = nll[r] + beta * factor * sum of p(k)
//
// where math/likelihood/kl_term.h defines p. All arrays are in the arithmetic dtype.
struct KlTerm {
  const void* samples = nullptr;  // [count]: k; absent: there is no KL term
  int64_t count = 0, stride = 1;
  double factor = 1.0;
  const void *beta = nullptr, *capacity = nullptr;  // one value each; absent: the values below
  double beta_value = 1.0, capacity_value = 0.0;
  bool has_capacity = false;
  int64_t results = 1;  // 1 or count

  void *loss = nullptr, *kl = nullptr;  // [results]

  // Backward: grad_samples[s] = factor * (beta p'(k) grad_loss[r] + grad_kl[r]), and the gradient
  // of beta is the sum of factor * p(k) grad_loss[r].
  const void *grad_loss = nullptr, *grad_kl = nullptr;  // [results]; absent: 0
  void *grad_samples = nullptr, *grad_beta = nullptr;   // [count], one value; absent: not needed

  VAE_FUSED_HD bool has_gradients() const { return grad_samples || grad_beta; }
};

// The row sums of weight * -ln p(target).
struct NllParams {
  DType dtype = DType::kFloat32;  // of the outputs
  Space space;
  Observations observations;
  RowSums nll;
  KlTerm kl;
};

// The gradients of sum(grad * nll). The space has no summed dimensions, so all dimensions keep
// their order.
//
// Where a kernel can sum the gradient of a broadcast parameter, it does not write the gradient at
// full size. The operand for these sums has one double per value of the parameter, and has the
// parameter's strides.
struct NllBackwardParams {
  DType dtype = DType::kFloat32;
  Space space;
  Observations observations;
  // The gradient of nll, in the dtype of the arithmetic, with stride 0 along summed dimensions.
  // Absent: 1.
  Operand grad;
  double factor = 1.0;
  // For a softmax: the row sum of d / d log mean, and the library, which is a part of the log mean.
  // An infinite library is replaced by 0. In that case the mean is 0, and so is its gradient.
  Operand row_dot, library;
  Operand grad_output, grad_target;
  Operand grad_second, grad_third;  // in full size, in the dtype of the outputs
  Operand sum_second, sum_third;    // or summed, as doubles
  double* partials = nullptr;       // [cuda::partials_of], for these sums on a GPU
  RowSums dot;                      // the result of softmax_dot
  // The value of nll, computed in the same pass, for a space of one row: the sum of the elements,
  // each multiplied by the gradient of its term. On a GPU its partials are
  // [cuda::value_partials_of].
  RowSums nll;
  KlTerm kl;  // kernels write its results if nll is present, and otherwise its gradients
};

// A softmax over rows of logits. Forward: row_max = max(logit) and row_shift = library - ln sum
// exp(logit - row_max). Masked elements are excluded.
struct SoftmaxParams {
  DType dtype = DType::kFloat32;
  Space space;  // its rows are the rows of the softmax
  Operand logits, mask;
  const void* library = nullptr;                  // [rows]; absent: 0
  void *row_max = nullptr, *row_shift = nullptr;  // [rows]
  // [2 * tiles] on a GPU if tiles_per_row > 1: the maximum and the sum of each tile.
  double* partials = nullptr;
};

// Gradients that the forward launch wrote as if the gradient of the loss were 1. Backward
// multiplies them by the actual gradient. This factor is nearly always 1, and in that case backward
// reads and writes no buffer.
constexpr int kMaxBuffers = 5;
struct GradientBuffers {
  struct Buffer {
    void* data = nullptr;
    DType dtype = DType::kFloat32;
    int64_t n = 0;
  };
  Buffer buffers[kMaxBuffers];
  const void* factor = nullptr;  // one value, in factor_dtype
  DType factor_dtype = DType::kFloat32;
  KlTerm kl;  // the same launch writes its gradients
};

template <typename Visit>
void for_each_operand(Observations& observations, DType dtype, const Visit& visit) {
  const int bytes = size_of(dtype), wide = arithmetic_size_of(dtype);
  visit(OperandRef("output", observations.output, bytes, false));
  visit(OperandRef("second", observations.second, bytes, false));
  visit(OperandRef("third", observations.third, bytes, false));
  visit(OperandRef("target", observations.target, size_of(observations.target_type), false));
  visit(OperandRef("mask", observations.mask, 1, false));
  visit(OperandRef("weight", observations.weight, wide, false));
  visit(OperandRef("row_max", observations.row_max, wide, false));
  visit(OperandRef("row_shift", observations.row_shift, wide, false));
}

template <typename Visit>
void for_each_operand(NllParams& p, const Visit& visit) {
  for_each_operand(p.observations, p.dtype, visit);
}

template <typename Visit>
void for_each_operand(NllBackwardParams& p, const Visit& visit) {
  const int bytes = size_of(p.dtype), wide = arithmetic_size_of(p.dtype);
  for_each_operand(p.observations, p.dtype, visit);
  visit(OperandRef("grad", p.grad, wide, false));
  visit(OperandRef("row_dot", p.row_dot, wide, false));
  visit(OperandRef("library", p.library, wide, false));
  visit(OperandRef("grad_output", p.grad_output, bytes, true));
  visit(OperandRef("grad_target", p.grad_target, bytes, true));
  visit(OperandRef("grad_second", p.grad_second, bytes, true));
  visit(OperandRef("grad_third", p.grad_third, bytes, true));
  visit(OperandRef("sum_second", p.sum_second, 8, true));
  visit(OperandRef("sum_third", p.sum_third, 8, true));
}

template <typename Visit>
void for_each_operand(SoftmaxParams& p, const Visit& visit) {
  visit(OperandRef("logits", p.logits, size_of(p.dtype), false));
  visit(OperandRef("mask", p.mask, 1, false));
}

namespace cpu {

void nll(const NllParams& params, ParallelFor parallel_for);
void nll_backward(const NllBackwardParams& params, ParallelFor parallel_for);
void softmax_rows(const SoftmaxParams& params, ParallelFor parallel_for);
// dot[row] = the row sum of d(factor * sum(grad * nll)) / d log mean. The rows of the space are
// those of the softmax.
void softmax_dot(const NllBackwardParams& params, ParallelFor parallel_for);
// Computes the gradients of the KL term if nll needs no gradients.
void kl_backward(const NllBackwardParams& params, ParallelFor parallel_for);
// Multiplies buffers by `factor`, in place.
void scale_gradients(const GradientBuffers& params, ParallelFor parallel_for);

}  // namespace cpu

namespace cuda {

// See params/latent.h. Each function performs one launch. nll_backward performs a short second
// launch if it sums gradients, and a function that combines row sums performs one if no ticket is
// left.
int nll(const NllParams& params, void* stream);
int nll_backward(const NllBackwardParams& params, void* stream);
int softmax_rows(const SoftmaxParams& params, void* stream);
int softmax_dot(const NllBackwardParams& params, void* stream);
int kl_backward(const NllBackwardParams& params, void* stream);
int scale_gradients(const GradientBuffers& params, void* stream);

// The number of partial sums that nll_backward writes for the parameters whose gradients it sums.
int64_t partials_of(const NllBackwardParams& params);
// The number of partial sums that nll_backward writes for the value of nll, if it also computes the
// value.
int64_t value_partials_of(const NllBackwardParams& params);

}  // namespace cuda

}  // namespace vae_fused
