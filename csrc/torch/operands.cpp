#include "torch/operands.h"

#include <algorithm>

#include "params/device.h"

namespace vae_fused {

namespace {

// Merges the sample dimensions into one, which precedes the dimensions of `like`. A tensor without
// sample dimensions is returned unchanged.
Tensor flatten_samples(const Tensor& t, const Tensor& like) {
  if (t.dim() == like.dim()) return t;
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes.insert(sizes.begin(), t.numel() / like.numel());
  return t.reshape(sizes);
}

}  // namespace

Space CallTensors::bind_to(const Operands& operands, const Tensor& like, DimSet summed) {
  c10::SmallVector<std::pair<Entry*, const OperandRef*>, kMaxOperands> present;
  for (Entry& entry : entries_) {
    const auto ref = std::find_if(operands.begin(), operands.end(),
                                  [&](const OperandRef& o) { return o.name == entry.name; });
    TORCH_INTERNAL_ASSERT(ref != operands.end(), "no operand ", entry.name);
    if (!entry.tensor.defined()) continue;
    entry.bound = ref->step ? flatten_samples(entry.tensor, like) : entry.tensor;
    entry.written = ref->written;
    present.emplace_back(&entry, ref);
  }
  TORCH_INTERNAL_ASSERT(present.size() <= kMaxOperands, present.size(), " operands");
  Space space;
  for (const bool copy : {false, true}) {
    std::vector<BoundTensor> bound_tensors;
    bound_tensors.reserve(present.size());
    for (const auto& [entry, ref] : present) {
      Tensor& t = entry->bound;
      if (copy) t = t.contiguous();
      void* data = ref->written ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
      const int64_t before = t.dim() - like.dim();
      bound_tensors.push_back({data, t.strides().data() + before, ref->operand});
      if (before > 0) *ref->step = t.stride(0);
    }
    if (make_space(like.sizes().vec(), summed, bound_tensors, space)) return space;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false,
                              "vae_fused: summed and kept dimensions must alternate at most ",
                              kMaxDims, " times, got more in a tensor with ", like.dim(),
                              " dimensions; move the summed dimensions to the end");
}

void CallTensors::copy_back() const {
  for (const Entry& entry : entries_) {
    const Tensor &bound = entry.bound, &result = entry.tensor;
    if (!entry.written || bound.const_data_ptr() == result.const_data_ptr()) continue;
    result.copy_(bound.reshape_symint(result.sym_sizes()));
  }
}

Tensor with_huge_pages(Tensor result) {
  if (result.is_cpu()) cpu::advise_huge_pages(result.mutable_data_ptr(), result.nbytes());
  return result;
}

}  // namespace vae_fused
