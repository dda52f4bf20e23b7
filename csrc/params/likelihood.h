// The calls of the likelihood family, from csrc/torch to the kernels: see params/latent.h.
#pragma once

#include "iteration/rows.h"
#include "iteration/space.h"
#include "math/likelihood/options.h"
#include "params/device.h"

namespace vae_fused {

// The dtype of a target. It is converted where it is loaded: pixels and counts are often integers.
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

// Bytes of an element in the dtype of the arithmetic.
constexpr int arithmetic_size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// What both directions read. Operands that a call does not have are absent.
struct Observations {
  LikelihoodKind kind = LikelihoodKind::kBernoulli;
  math::LikelihoodOptions<double> options;
  Operand output, second, third;  // the decoder's outputs, in the order of the kind
  Operand target;
  TargetType target_type = TargetType::kFloat32;
  Operand mask;    // bytes, 0 or 1
  Operand weight;  // in the dtype of the arithmetic, as what follows
  // The logarithm of the mean is (output - row_max) + row_shift: a softmax, and the library.
  Operand row_max, row_shift;
};

// The KL term of an evidence lower bound, whose reconstruction is the sums over rows of nll: one
// result, or one for each sample. Result r has all samples or sample r:
//
//   kl[r] = scale * sum of k       loss[r] = nll[r] + beta * scale * sum of p(k)
//
// with p of math/likelihood/kl_term.h. All arrays are in the dtype of the arithmetic.
struct KlTerm {
  const void* samples = nullptr;  // [count]: k; absent: there is no KL term
  int64_t count = 0, stride = 1;
  double scale = 1.0;
  const void *beta = nullptr, *capacity = nullptr;  // one value each; absent: these
  double beta_value = 1.0, capacity_value = 0.0;
  bool has_capacity = false;
  int64_t results = 1;  // 1 or count

  void *loss = nullptr, *kl = nullptr;  // [results]

  // Backward: grad_samples[s] = scale * (beta p'(k) grad_loss[r] + grad_kl[r]), and the gradient of
  // beta is the sum of scale * p(k) grad_loss[r].
  const void *grad_loss = nullptr, *grad_kl = nullptr;  // [results]; absent: 0
  void *grad_samples = nullptr, *grad_beta = nullptr;   // [count], one value; absent: not needed

  VAE_FUSED_HD bool has_gradients() const { return grad_samples || grad_beta; }
};

// The sums over rows of weight * -ln p(target).
struct NllParams {
  DType dtype = DType::kFloat32;  // of the outputs
  Space space;
  Observations of;
  RowSums nll;
  KlTerm kl;
};

// The gradients of sum(grad * nll). The space has the natural order of the elements.
//
// The gradient of a broadcast parameter is summed, and never written at full size. Its operand then
// is a double for each value of the parameter, with the strides of the parameter.
struct NllBackwardParams {
  DType dtype = DType::kFloat32;
  Space space;
  Observations of;
  // Of nll, in the dtype of the arithmetic; stride 0 along what was summed. Absent: 1.
  Operand grad;
  double scale = 1.0;
  // A softmax has the row's sum of d / d log mean, and the library, which is a part of the log
  // mean. The library is finite here: where it was not, the mean is 0 and so is its gradient.
  Operand row_dot, library;
  Operand grad_output, grad_target;
  Operand grad_second, grad_third;  // in the dtype of the outputs, or
  Operand sum_second, sum_third;    // summed, as doubles
  double* partials = nullptr;       // [cuda::partials_of], where a kernel on a GPU sums them
  RowSums dot;                      // softmax_dot alone: its result
  // The value of nll in the same pass, where the space is one row: the sum of the elements, each
  // times the gradient of its term. On a GPU its partials are [cuda::value_partials_of].
  RowSums nll;
  KlTerm kl;  // with nll its results, otherwise its gradients
};

// A softmax over rows of logits. Forward: row_max = max(logit) and row_shift = library - ln sum
// exp(logit - row_max). Masked elements do not take part.
struct SoftmaxParams {
  DType dtype = DType::kFloat32;
  Space space;  // its rows are those of the softmax
  Operand logits, mask;
  const void* library = nullptr;                  // [rows]; absent: 0
  void *row_max = nullptr, *row_shift = nullptr;  // [rows]
  // On a GPU, where tiles_per_row > 1: the maximum and the sum of each tile, [2 * tiles].
  double* partials = nullptr;
};

// Gradients that the forward launch has written for a gradient of 1 of the loss. Backward
// multiplies them by the gradient that it is given, which is nearly always 1; nothing is read or
// written then.
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
  KlTerm kl;  // its gradients, which the same launch writes
};

template <typename Visit>
void for_each_operand(Observations& of, DType dtype, const Visit& visit) {
  const int bytes = size_of(dtype), wide = arithmetic_size_of(dtype);
  visit(OperandRef("output", of.output, bytes, false));
  visit(OperandRef("second", of.second, bytes, false));
  visit(OperandRef("third", of.third, bytes, false));
  visit(OperandRef("target", of.target, size_of(of.target_type), false));
  visit(OperandRef("mask", of.mask, 1, false));
  visit(OperandRef("weight", of.weight, wide, false));
  visit(OperandRef("row_max", of.row_max, wide, false));
  visit(OperandRef("row_shift", of.row_shift, wide, false));
}

template <typename Visit>
void for_each_operand(NllParams& p, const Visit& visit) {
  for_each_operand(p.of, p.dtype, visit);
}

template <typename Visit>
void for_each_operand(NllBackwardParams& p, const Visit& visit) {
  const int bytes = size_of(p.dtype), wide = arithmetic_size_of(p.dtype);
  for_each_operand(p.of, p.dtype, visit);
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
// dot[row] = the row's sum of d(scale * sum(grad * nll)) / d log mean. The rows of the space are
// those of the softmax.
void softmax_dot(const NllBackwardParams& params, ParallelFor parallel_for);
// The gradients of the KL term, where nll needs none.
void kl_backward(const NllBackwardParams& params, ParallelFor parallel_for);
// Multiplies buffers by `factor`, in place.
void scale_gradients(const GradientBuffers& params, ParallelFor parallel_for);

}  // namespace cpu

namespace cuda {

// See params/latent.h. One launch each, and a short second one where nll_backward sums.
int nll(const NllParams& params, void* stream);
int nll_backward(const NllBackwardParams& params, void* stream);
int softmax_rows(const SoftmaxParams& params, void* stream);
int softmax_dot(const NllBackwardParams& params, void* stream);
int kl_backward(const NllBackwardParams& params, void* stream);
int scale_gradients(const GradientBuffers& params, void* stream);

// How many partial sums nll_backward leaves of the parameters that it sums.
int64_t partials_of(const NllBackwardParams& params);
// How many partial sums of values it leaves, where it computes the value of nll as well.
int64_t value_partials_of(const NllBackwardParams& params);

}  // namespace cuda

}  // namespace vae_fused
