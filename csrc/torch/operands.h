// Binds tensors to operands over one iteration space.
#pragma once

#include "iteration/make_space.h"
#include "torch/tensor.h"

namespace vae_fused {

// The tensors of a call, by the names of its operands.
class CallTensors {
 public:
  // Adds a tensor that has the shape of the call, or that consists of several samples of that
  // shape. An undefined tensor counts as absent.
  void add(std::string_view name, const Tensor& tensor) { entries_.emplace_back(name, tensor); }

  // Binds the operands of `params` to the tensors of the same names, over one iteration space. The
  // call has the shape of `like`. If more than kMaxDims dimensions remain after merging, contiguous
  // copies, which have fewer dimensions, are bound instead.
  template <typename Params>
  Space bind(Params& params, const Tensor& like, DimSet summed) {
    Operands operands;
    for_each_operand(params, [&](const OperandRef& ref) { operands.push_back(ref); });
    return bind_to(operands, like, summed);
  }

  // Copies results from contiguous copies back to the tensors that were added.
  void copy_back() const;

 private:
  struct Entry {
    std::string_view name;
    Tensor tensor, bound;
    bool written = false;

    Entry(std::string_view name, const Tensor& tensor) : name(name), tensor(tensor) {}
  };
  using Operands = c10::SmallVector<OperandRef, kMaxOperands>;

  Space bind_to(const Operands& operands, const Tensor& like, DimSet summed);

  c10::SmallVector<Entry, kMaxOperands> entries_;
};

// Advises the operating system to use huge pages for a new tensor that a kernel is about to write:
// see cpu/pages.cpp.
Tensor with_huge_pages(Tensor result);

}  // namespace vae_fused
