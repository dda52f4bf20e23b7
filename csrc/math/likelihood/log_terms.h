// The terms of a value. With these terms, several values can be added with one logarithm: see
// math/likelihood/bernoulli.h.
#pragma once

#include "math/lanes.h"

namespace vae_fused::math {

// The value ln(1 + e^exponent) - exponent * weight, with exponent <= 0. The product
// exponent * weight is 0 if the weight is 0.
template <typename F>
struct LogTerms {
  F exponent, weight;
};

template <typename F>
VAE_FUSED_HD F linear_term(const LogTerms<F>& terms) {
  return select(terms.weight == F(0), F(0), terms.exponent * terms.weight);
}

// (1 + a)(1 + b) - 1, computed so that small a and b keep their digits.
template <typename F>
VAE_FUSED_HD F excess_of_product(F a, F b) {
  return a * b + (a + b);
}

// Whether a likelihood has the function log_terms.
template <class L>
constexpr bool kHasLogTerms = false;

}  // namespace vae_fused::math
