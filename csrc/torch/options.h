// Options are passed from Python as a flat list of pairs. A pair consists of an option's position
// among the options of its family, and its value. An option that is not in the list has its default
// value. Therefore, a call with one option passes only 2 numbers, whereas converting all 31 options
// would take 5 us. Defaults are never written out, because many of them are infinite, and some
// serialised graph formats cannot represent infinity.
//
// `Given` is a struct of math/options.h: GivenLatent, GivenLikelihood.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace vae_fused {

using OptionList = std::optional<c10::ArrayRef<double>>;

// The scope, the name and the default of each option, in the order of their positions.
using OptionNames =
    std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<double>>;

template <class Given>
OptionNames names_of_options() {
  std::vector<std::string> scopes, names;
  std::vector<double> defaults;
  Given().visit_numbers([&](const char* scope, const char* name, double number) {
    scopes.emplace_back(scope);
    names.emplace_back(name);
    defaults.push_back(number);
  });
  return {scopes, names, defaults};
}

template <class Given>
Given given_options(OptionList pairs) {
  Given given;
  if (!pairs.has_value()) return given;
  c10::SmallVector<double*, 32> numbers;
  given.visit_numbers(
      [&](const char*, const char*, double& number) { numbers.push_back(&number); });
  const size_t size = pairs->size();
  TORCH_CHECK_VALUE(size % 2 == 0, "vae_fused: options must contain pairs, got ", size, " numbers");
  for (size_t k = 0; k < size; k += 2) {
    const double place = (*pairs)[k];
    const bool is_place = place >= 0 && place < static_cast<double>(numbers.size());
    TORCH_CHECK_VALUE(is_place, "vae_fused: options must contain positions between 0 and ",
                      numbers.size() - 1, ", got ", place);
    *numbers[static_cast<size_t>(place)] = (*pairs)[k + 1];
  }
  return given;
}

}  // namespace vae_fused
