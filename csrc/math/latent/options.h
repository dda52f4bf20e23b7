// The options of a call's Gaussians, as plain data: how a network's output is mapped to sigma, what
// the prior is, and how the KL and its gradient are weighted. The host derives
// LatentOptions<double> from the numbers that Python passes. Kernels use LatentOptions<T> of their
// arithmetic type T.
#pragma once

#include <algorithm>
#include <limits>

#include "math/scale_options.h"

namespace vae_fused::math {

// All options except those of the posterior's and the prior's scales. prior_mean and prior_raw are
// used where the prior has no tensor for them.
#define VAE_FUSED_LATENT_OPTIONS(OPTION, GIVEN, DERIVED)                           \
  OPTION(T, mu_soft_clamp, 0)                                                      \
  DERIVED(T, per_mu_soft_clamp, 0)                                                 \
  OPTION(T, prior_mean, 0)                                                         \
  GIVEN(prior_raw, 0)                                                              \
  DERIVED(T, prior_precision, 1) /* 1 / tau */                                     \
  DERIVED(T, prior_x, 0)         /* ln tau^2 */                                    \
  OPTION(T, temperature, 1)                                                        \
  OPTION(T, free_bits, 0)    /* the minimum KL of an element */                    \
  OPTION(T, to_posterior, 1) /* weights of the KL's gradient */                    \
  OPTION(T, to_prior, 1)                                                           \
  OPTION(bool, is_linear_form, 0) /* 1/2 (d^2 + constant - x) instead of the KL */ \
  OPTION(T, constant, 0)                                                           \
  OPTION(bool, at_sample, 0) /* ln q(z) - ln p(z) instead of the KL */             \
  OPTION(bool, stop_q, 0)    /* its gradient passes only through z */              \
  VAE_FUSED_EXTRA_LATENT_OPTIONS(OPTION)

// The options of this list that a call may pass as 0-d tensors on the device, because they change
// during training. They are in the order of the operators' arguments.
#define VAE_FUSED_DEVICE_SCALARS(SCALAR) \
  SCALAR(temperature)                    \
  SCALAR(free_bits)                      \
  SCALAR(to_posterior)                   \
  SCALAR(to_prior)                       \
  VAE_FUSED_EXTRA_DEVICE_SCALARS(SCALAR)

template <typename T>
struct LatentOptions {
  ScaleOptions<T> posterior, prior;
  VAE_FUSED_FIELDS(VAE_FUSED_LATENT_OPTIONS)
};

// A prior given by scalars, in the form that kernels use: m, 1 / tau and ln tau^2.
struct FixedPrior {
  double mean = 0, precision = 1, x = 0;
};

// The numbers that Python passes, in this order.
struct GivenLatent {
  using T = double;
  GivenScale posterior, prior;
  VAE_FUSED_NUMBERS(VAE_FUSED_LATENT_OPTIONS)

  // Calls visit(scope, name, number) for each number. The scope is "posterior", "prior" or empty.
  template <typename Visit>
  void visit_numbers(const Visit& visit_scoped) {
    const auto in = [&](const char* scope) {
      return [&visit_scoped, scope](const char* name, double& x) { visit_scoped(scope, name, x); };
    };
    posterior.visit_numbers(in("posterior"));
    prior.visit_numbers(in("prior"));
    const auto visit = in("");
    VAE_FUSED_VISIT_NUMBERS(VAE_FUSED_LATENT_OPTIONS)
  }
};

// Pointers to the options that a call passes on the device, in the arithmetic type of the kernels.
// Where a pointer is null, LatentOptions contains the value.
struct DeviceScalars {
#define VAE_FUSED_POINTER(name) const void* name = nullptr;
  VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_POINTER)
#undef VAE_FUSED_POINTER

  // Calls visit(name, pointer) for each option.
  template <typename Visit>
  void visit(const Visit& visit_one) {
#define VAE_FUSED_VISIT_POINTER(name) visit_one(#name, name);
    VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_VISIT_POINTER)
#undef VAE_FUSED_VISIT_POINTER
  }

  bool any() const {
#define VAE_FUSED_IS_GIVEN(name) || name
    return false VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_IS_GIVEN);
#undef VAE_FUSED_IS_GIVEN
  }
};

// Replaces fields of `to` with the values that a call passes on the device, which have type T.
template <typename T, typename To>
VAE_FUSED_HD void read_scalars(const DeviceScalars& scalars, To& to) {
#define VAE_FUSED_READ(name) \
  if (scalars.name) to.name = *static_cast<const T*>(scalars.name);
  VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_READ)
#undef VAE_FUSED_READ
}

// The part of LatentOptions that the formulas for samples and KLs read, including the values on the
// device. A kernel keeps this part in registers. The rest of LatentOptions stays in the kernel's
// parameters, which instructions read directly. Copying all of LatentOptions took up to 7 more
// registers on sm_90.
template <typename T>
struct Weights {
#define VAE_FUSED_WEIGHT(name) T name;
  VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_WEIGHT)
#undef VAE_FUSED_WEIGHT
  bool is_linear_form;
  T constant;

  VAE_FUSED_HD Weights(const LatentOptions<T>& o, const DeviceScalars& scalars)
      :
#define VAE_FUSED_COPY(name) name(o.name),
        VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_COPY)
#undef VAE_FUSED_COPY
            is_linear_form(o.is_linear_form),
        constant(o.constant) {
    read_scalars<T>(scalars, *this);
  }
};

// The default call (logvar, standard normal prior), with or without a hard clamp. It is a separate
// type, so that the kernels for the default call contain the other options as constants, which the
// compiler folds away. The clamp is included, because it costs only 1 to 4 of some 90 instructions,
// and image latents always have one.
template <typename T>
struct DefaultOptions {
  static constexpr T temperature = 1, mu_soft_clamp = 0;
  static constexpr bool is_linear_form = false;
  T low, high;
  T clip_high;  // the smaller of high and the bound above which exponentials no longer change

  VAE_FUSED_HD bool clamps() const { return is_clamp(low, high); }
};

// A precision as a finite number of type T.
template <typename T>
double representable(double precision) {
  return std::min(precision, 1.0 / std::numeric_limits<T>::min());
}

template <typename T>
LatentOptions<T> narrowed(const LatentOptions<double>& from) {
  LatentOptions<T> to;
  to.posterior = narrowed<T>(from.posterior);
  to.prior = narrowed<T>(from.prior);
  VAE_FUSED_CONVERT_FIELDS(VAE_FUSED_LATENT_OPTIONS)
  to.prior_precision = T(representable<T>(from.prior_precision));
  return to;
}

// Copies the given options and leaves derived fields at their defaults.
inline LatentOptions<double> underived(const GivenLatent& from) {
  using T = double;
  LatentOptions<double> to;
  to.posterior = underived(from.posterior);
  to.prior = underived(from.prior);
  VAE_FUSED_CONVERT_OPTIONS(VAE_FUSED_LATENT_OPTIONS)
  return to;
}

inline bool operator==(const LatentOptions<double>& a, const LatentOptions<double>& b) {
  return a.posterior == b.posterior && a.prior == b.prior &&
         VAE_FUSED_EQUAL_FIELDS(VAE_FUSED_LATENT_OPTIONS);
}

// Whether DefaultOptions represents all options of this call. Fields that make no difference are
// reset, and then every field is compared. The reset fields are:
//
// - the hard clamp, which DefaultOptions contains, if it maps 0 to 0. A GPU kernel pads vectors
//   with zeros, which enter the sum of their row, so the KL of a zero has to be 0. (The sums of the
//   CPU kernels stop at the last element.)
// - the options that act on the prior's tensors, because kernels for DefaultOptions have no such
//   tensors
// - the constant of the linear form, which those kernels do not have
// - the estimator, which is selected separately
inline bool is_default(LatentOptions<double> o) {
  if (o.posterior.low <= 0) o.posterior.low = -kInfinity<double>;
  if (o.posterior.high >= 0) o.posterior.high = kInfinity<double>;
  o.prior = {};
  o.to_prior = 1;
  o.constant = 0;
  if (o.at_sample) o.free_bits = 0;
  o.at_sample = o.stop_q = false;
  return o == LatentOptions<double>{};
}

}  // namespace vae_fused::math
