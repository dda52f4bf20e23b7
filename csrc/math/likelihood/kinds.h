// Includes the formulas of every kind, and defines the dispatch from a kind to its formulas.
#pragma once

#include "math/likelihood/bernoulli.h"
#include "math/likelihood/continuous_bernoulli.h"
#include "math/likelihood/discretized_logistic.h"
#include "math/likelihood/gaussian.h"
#include "math/likelihood/laplace.h"
#include "math/likelihood/negative_binomial_logits.h"
#include "math/likelihood/poisson.h"
#include "math/likelihood/student_t.h"
#include "math/likelihood/zero_inflated.h"

namespace vae_fused::math {

#define VAE_FUSED_CHECK_KIND(name, data)                                                   \
  static_assert(name::kIsCount == is_count(LikelihoodKind::k##name) && name::kInputs <= 4, \
                "a kernel has up to three outputs and a target");
VAE_FUSED_LIKELIHOODS(VAE_FUSED_CHECK_KIND)
#undef VAE_FUSED_CHECK_KIND

}  // namespace vae_fused::math

// Returns visit(L{}), where L is the struct of the call's kind. This is a macro, because nvcc warns
// if a host-and-device function takes a lambda that is for only one of them.
#define VAE_FUSED_CASE_OF_KIND(name, data)   \
  case ::vae_fused::LikelihoodKind::k##name: \
    return visit(::vae_fused::math::name{});
#define VAE_FUSED_RETURN_WITH_KIND(kind, visit)     \
  switch (kind) {                                   \
    VAE_FUSED_LIKELIHOODS(VAE_FUSED_CASE_OF_KIND)   \
    default:                                        \
      return visit(::vae_fused::math::Bernoulli{}); \
  }
