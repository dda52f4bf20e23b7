// The options of a call's likelihood, as plain data. The host fills in LikelihoodOptions<double>.
// A kernel uses LikelihoodOptions<T>, where T is the type of its arithmetic.
//
// A likelihood is a struct of functions. The array `in` contains the likelihood's inputs: the
// network's outputs, followed by the target x. A value is the negative log-likelihood of one
// element, in nats.
//
//   value(o, in)                            the value
//   adjoint(o, in, grad, out)               grad times the derivative with respect to each input
//   kIsCount                                whether x is a count, which is 0 for most elements
//   count_term(o, in)                       what x > 0 adds to `value`
//   count_term_adjoint(o, in, grad, out)    what x > 0 adds to `out`
//   log_terms(in)                           the terms of a value, if kHasLogTerms
//
// A kernel calls `value` and `adjoint` for each element. It collects the elements where x is not
// 0, without gaps between them, and calls `count_term` and `count_term_adjoint` only for these. The
// gradient of a target that is a count is 0.
//
// The functions of math/likelihood are templates over the type of the options. A kernel that is
// compiled for one value of an option passes a type derived from LikelihoodOptions. The derived
// type has a static constexpr member with the name of the option, and the compiler folds the
// branches that test it.
#pragma once

#include "math/scale_options.h"

namespace vae_fused {

// The type of a kind's target.
enum class Data : int32_t {
  kReal,
  kGrid,         // points of a grid, which have no gradient
  kCount,        // 0 for most elements; no gradient
  kCountOfMean,  // a count whose first output is a mean, which may be a softmax
};

// Every kind, in the order of the numbers by which Python selects them. The kernels, their tables
// and the native tests are generated from this list: KIND(name, data) stands for the struct
// math::name and the enumerator kname. Only append to this list, because the numbers are part of
// saved graphs.
#define VAE_FUSED_LIKELIHOODS(KIND)                \
  KIND(Bernoulli, kReal)                           \
  KIND(Gaussian, kReal)                            \
  KIND(Laplace, kReal)                             \
  KIND(Poisson, kCountOfMean)                      \
  KIND(NegativeBinomial, kCountOfMean)             \
  KIND(ZeroInflatedNegativeBinomial, kCountOfMean) \
  KIND(StudentT, kReal)                            \
  KIND(ContinuousBernoulli, kReal)                 \
  KIND(NegativeBinomialLogits, kCount)             \
  KIND(DiscretizedLogistic, kGrid)

#define VAE_FUSED_ENUMERATOR(name, data) k##name,
enum class LikelihoodKind : int32_t { VAE_FUSED_LIKELIHOODS(VAE_FUSED_ENUMERATOR) };
#undef VAE_FUSED_ENUMERATOR

#define VAE_FUSED_COUNT(name, data) +1
constexpr int kLikelihoodKinds = VAE_FUSED_LIKELIHOODS(VAE_FUSED_COUNT);
#undef VAE_FUSED_COUNT

VAE_FUSED_HD constexpr Data data_of(LikelihoodKind kind) {
#define VAE_FUSED_CASE(name, data) \
  case LikelihoodKind::k##name:    \
    return Data::data;
  switch (kind) { VAE_FUSED_LIKELIHOODS(VAE_FUSED_CASE) }
#undef VAE_FUSED_CASE
  return Data::kReal;
}

VAE_FUSED_HD constexpr bool is_count(LikelihoodKind kind) {
  return data_of(kind) == Data::kCount || data_of(kind) == Data::kCountOfMean;
}

}  // namespace vae_fused

namespace vae_fused::math {

template <typename T>
constexpr T kLeastNormal = std::numeric_limits<T>::min();

// The function that maps a network's output to a positive parameter: see
// math/likelihood/front_end.h.
enum class FrontEnd : int32_t { kIdentity, kExp, kSoftplus, kSoftmax };

enum class ZeroInflation : int32_t { kLogits, kProbs };

template <typename T>
struct LikelihoodOptions {
  // Counts: the front ends of the mean (the rate of a Poisson) and of theta. theta is at most
  // dispersion_max. eps is added to the mean and to theta where scvi adds its 1e-8.
  FrontEnd mean = FrontEnd::kIdentity, dispersion = FrontEnd::kIdentity;
  T dispersion_max = kInfinity<T>;
  T eps = 0;
  ZeroInflation zero_inflation = ZeroInflation::kLogits;
  bool constants = true;  // whether values of count likelihoods contain ln x!

  // Gaussian, Laplace and Student-t: sigma is computed from the output `raw`, or is 1 / precision.
  // `constant` is added to each element. It contains 1/2 ln 2 pi or ln 2, and the terms of a fixed
  // sigma and a fixed df. It is 0 if `constants` is false.
  bool has_raw = false;
  ScaleOptions<T> scale;
  T precision = 1, constant = 0;

  // Student-t: the front end `dispersion` computes the degrees of freedom from an output, or they
  // are the constant df.
  bool has_df = false;
  T df = 1;

  // Discretized logistic: half the step size of the grid, and the lower bound of ln scale.
  T half_step = T(1.0 / 255), log_scale_min = -7;
};

// The numbers that Python passes, in this order. `kind` is an enumerator of LikelihoodKind. `sigma`
// is for kinds without a raw scale. `df` is 0 if the degrees of freedom are an output. `bits`
// determines the grid.
#define VAE_FUSED_LIKELIHOOD_OPTIONS(OPTION, GIVEN, DERIVED) \
  GIVEN(kind, 0)                                             \
  GIVEN(mean, 0)                                             \
  GIVEN(dispersion, 0)                                       \
  GIVEN(dispersion_max, kInfinity<double>)                   \
  GIVEN(eps, 0)                                              \
  GIVEN(zero_inflation, 0)                                   \
  GIVEN(constants, 1)                                        \
  GIVEN(sigma, 1)                                            \
  GIVEN(df, 0)                                               \
  GIVEN(bits, 8)                                             \
  GIVEN(log_scale_min, -7)

struct GivenLikelihood {
  GivenScale scale;
  VAE_FUSED_NUMBERS(VAE_FUSED_LIKELIHOOD_OPTIONS)

  // Calls visit(scope, name, number) for each number. The scope is "scale" or empty.
  template <typename Visit>
  void visit_numbers(const Visit& visit_scoped) {
    scale.visit_numbers([&](const char* name, double& x) { visit_scoped("scale", name, x); });
    const auto visit = [&](const char* name, double& x) { visit_scoped("", name, x); };
    VAE_FUSED_VISIT_NUMBERS(VAE_FUSED_LIKELIHOOD_OPTIONS)
  }
};

template <typename T>
LikelihoodOptions<T> narrowed(const LikelihoodOptions<double>& o) {
  LikelihoodOptions<T> result;
  result.mean = o.mean;
  result.dispersion = o.dispersion;
  result.dispersion_max = T(o.dispersion_max);
  result.eps = T(o.eps);
  result.zero_inflation = o.zero_inflation;
  result.constants = o.constants;
  result.has_raw = o.has_raw;
  result.scale = narrowed<T>(o.scale);
  result.precision = T(o.precision);
  result.constant = T(o.constant);
  result.has_df = o.has_df;
  result.df = T(o.df);
  result.half_step = T(o.half_step);
  result.log_scale_min = T(o.log_scale_min);
  return result;
}

}  // namespace vae_fused::math
