// The `options` argument of the operators, for a call's Gaussians: see torch/options.h.
#pragma once

#include "math/latent/options.h"
#include "torch/options.h"
#include "torch/tensor.h"

namespace vae_fused {

// Returns the options that math/latent/options.h and, for each of the two scales,
// math/scale_options.h define.
OptionNames latent_options();

// Returns the defaults if `options` is absent.
math::LatentOptions<double> parse_options(OptionList options);

// Returns a prior that is given by numbers. The prior's scale in `options` maps `raw` to tau.
math::FixedPrior fixed_prior(const math::LatentOptions<double>& options, double mean, double raw);

#define VAE_FUSED_COUNT(name) +1
constexpr size_t kDeviceScalars = VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_COUNT);
#undef VAE_FUSED_COUNT

// The options of a call's Gaussians: numbers, and tensors that replace some of these numbers. Such
// a tensor is 0-d, has the arithmetic dtype, and is on the kernel's device. It receives no
// gradient.
struct GivenOptions {
  OptionList numbers = std::nullopt;
#define VAE_FUSED_TENSOR(name) OptionalTensor name = std::nullopt;
  VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_TENSOR)
#undef VAE_FUSED_TENSOR

  // Calls visit(name, tensor) for each tensor, present or absent.
  template <typename Visit>
  void for_each_scalar(const Visit& visit) {
    for_each_scalar(*this, visit);
  }
  template <typename Visit>
  void for_each_scalar(const Visit& visit) const {
    for_each_scalar(*this, visit);
  }

  bool has_scalars() const;
  void check(const Tensor& mu) const;

  // Returns the pointers through which kernels that compute with `options` read the tensors.
  math::DeviceScalars pointers(const math::LatentOptions<double>& options) const;

 private:
  template <typename Self, typename Visit>
  static void for_each_scalar(Self& self, const Visit& visit) {
#define VAE_FUSED_VISIT_TENSOR(name) visit(#name, self.name);
    VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_VISIT_TENSOR)
#undef VAE_FUSED_VISIT_TENSOR
  }
};

// Macros for the operator parameters that contain these options, for the `GivenOptions` made from
// these parameters, and for the arguments that pass a GivenOptions `given` to an operator.
#define VAE_FUSED_SCALAR_PARAMETER(name) , const OptionalTensor& name
#define VAE_FUSED_SCALAR_ARGUMENT(name) , name
#define VAE_FUSED_SCALAR_OF_GIVEN(name) , given.name
#define VAE_FUSED_OPTION_PARAMETERS \
  OptionList options VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_SCALAR_PARAMETER)
#define VAE_FUSED_GIVEN_OPTIONS \
  GivenOptions { options VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_SCALAR_ARGUMENT) }
#define VAE_FUSED_OPTION_ARGUMENTS given.numbers VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_SCALAR_OF_GIVEN)

}  // namespace vae_fused
