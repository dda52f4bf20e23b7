// Arrays that own their strides, for tests. The iteration space itself is in csrc/iteration.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "iteration/make_space.h"

namespace vae_fused::testing {

// If true, spaces are treated as if their offsets exceeded 2^31, because no test here has tensors
// with such offsets.
inline bool large = false;

struct Array {
  void* data = nullptr;          // null if absent
  std::vector<int64_t> strides;  // in elements
  int64_t step = 0;              // elements from one sample to the next
};

inline Space make_space(const std::vector<int64_t>& sizes, const std::vector<bool>& summed,
                        const std::vector<std::pair<const Array*, Operand*>>& arrays) {
  DimSet dims;
  for (size_t d = 0; d < summed.size(); ++d) dims[d] = summed[d];
  std::vector<BoundTensor> bound_tensors;
  for (const auto& [array, operand] : arrays) {
    bound_tensors.push_back({array->data, array->strides.data(), operand});
  }
  Space space;
  if (!vae_fused::make_space(sizes, dims, bound_tensors, space)) {
    throw std::invalid_argument("too many dimensions");
  }
  space.has_32_bit_offsets = space.has_32_bit_offsets && !large;
  return space;
}

// Binds the operands of a call to the arrays of the same names.
template <typename Params>
void bind(Params& params, const std::vector<int64_t>& sizes, const std::vector<bool>& summed,
          const std::map<std::string, Array>& arrays) {
  std::vector<std::pair<const Array*, Operand*>> bound;
  for_each_operand(params, [&](const OperandRef& ref) {
    const auto found = arrays.find(std::string(ref.name));
    if (found == arrays.end()) return;
    bound.emplace_back(&found->second, ref.operand);
    if (ref.step) *ref.step = found->second.step;
  });
  if (bound.size() != arrays.size()) throw std::logic_error("an array of no operand");
  params.space = make_space(sizes, summed, bound);
}

}  // namespace vae_fused::testing
