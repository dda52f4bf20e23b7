// The `options` argument of the likelihood operators: the kind and its numbers. See
// torch/options.h.
#pragma once

#include "params/likelihood.h"
#include "torch/options.h"

namespace vae_fused {

// Returns the options that math/likelihood/options.h and, for the scale, math/scale_options.h
// define.
OptionNames likelihood_options();

// A checked list of options.
class OptionNumbers {
 public:
  explicit OptionNumbers(OptionList options);

  LikelihoodKind kind() const { return static_cast<LikelihoodKind>(given_.kind); }
  bool is_softmax() const;
  // Whether a decoder for this kind can have this number of outputs.
  bool accepts(size_t outputs) const;
  // Returns the options that kernels read. `has_second` is true if the decoder has a second output,
  // which is a raw scale for Gaussian, Laplace and Student-t.
  math::LikelihoodOptions<double> parsed(bool has_second) const;

 private:
  math::GivenLikelihood given_;
};

}  // namespace vae_fused
