// The argument `options` of the likelihood operators: the kind and its numbers, see
// torch/options.h.
#pragma once

#include "params/likelihood.h"
#include "torch/options.h"

namespace vae_fused {

// The numbers are those of math/likelihood/options.h and, for the scale, of math/scale_options.h.
OptionNames likelihood_options();

// The list of options, checked.
class OptionNumbers {
 public:
  explicit OptionNumbers(OptionList options);

  LikelihoodKind kind() const { return static_cast<LikelihoodKind>(given_.kind); }
  bool is_softmax() const;
  // Whether the kind takes this number of outputs.
  bool accepts(size_t outputs) const;
  // The options that kernels read. `has_second`: whether the decoder has a second output, which is
  // a raw scale for Gaussian, Laplace and Student-t.
  math::LikelihoodOptions<double> parsed(bool has_second) const;

 private:
  math::GivenLikelihood given_;
};

}  // namespace vae_fused
