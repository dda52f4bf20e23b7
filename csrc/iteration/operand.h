// A tensor of a call in the form in which kernels receive it: a pointer and strides over the
// iteration space.
#pragma once

#include <string_view>

#include "math/platform.h"

namespace vae_fused {

// The dtype of mu, logvar, z, eps and their gradients. Kernels compute in double for kFloat64 and
// in float for the other dtypes.
enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

constexpr int kMaxDims = 16;
// The maximum number of tensors in a call. The backward call of a zero-inflated negative binomial
// with a softmax, a library, a mask and a weight has 14.
constexpr int kMaxOperands = 14;

// A tensor over the iteration space. `data` is null if the call has no such tensor. Strides are in
// elements.
struct Operand {
  void* data = nullptr;
  int64_t stride[kMaxDims] = {};
  bool is_contiguous = false;  // element e is data[e]
};

// A tensor with separate values for each sample: sample s begins `step` elements after sample
// s - 1.
struct SampledOperand : Operand {
  int64_t step = 0;
};

// The size of an element in bytes.
constexpr int size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// An operand of a call, for code that treats all operands alike. In params/, each family's file
// defines for_each_operand(params, visit), which calls visit(OperandRef) for every operand of a
// call, whether it is present or not.
struct OperandRef {
  std::string_view name;
  Operand* operand;
  int bytes;                // bytes of an element
  bool written = false;     // otherwise it is read and may be broadcast along a vector
  int64_t* step = nullptr;  // the step of a SampledOperand

  OperandRef(std::string_view name, Operand& operand, int bytes, bool written)
      : name(name), operand(&operand), bytes(bytes), written(written) {}
  OperandRef(std::string_view name, SampledOperand& operand, int bytes, bool written)
      : name(name), operand(&operand), bytes(bytes), written(written), step(&operand.step) {}
};

}  // namespace vae_fused
