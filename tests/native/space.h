// Arrays that own their strides, for tests: the iteration space itself is csrc/space.h's.
#pragma once

#include <stdexcept>
#include <utility>
#include <vector>

#include "../../csrc/space.h"

namespace vae_fused::testing {

// For offsets to be those of a tensor of 2^31 elements, which no test has here.
inline bool large = false;

struct Array {
  void* data = nullptr;          // null: absent
  std::vector<int64_t> strides;  // in elements
};

inline Space make_space(const std::vector<int64_t>& sizes, const std::vector<bool>& summed,
                        const std::vector<std::pair<const Array*, Operand*>>& arrays) {
  DimSet dims;
  for (size_t d = 0; d < summed.size(); ++d) dims[d] = summed[d];
  std::vector<Binding> bindings;
  for (const auto& [array, operand] : arrays) {
    bindings.push_back({array->data, array->strides.data(), operand});
  }
  Space space;
  if (!vae_fused::make_space(sizes, dims, bindings, space)) {
    throw std::invalid_argument("too many dimensions");
  }
  space.small = space.small && !large;
  return space;
}

}  // namespace vae_fused::testing
