// The operators' `options`: what a call chooses about its Gaussians, see torch/options.h.
#pragma once

#include "math/latent/options.h"
#include "torch/options.h"
#include "torch/tensor.h"

namespace vae_fused {

// The numbers are those of math/latent/options.h and, for either scale, of math/scale_options.h.
OptionNames latent_options();

// Absent: the defaults.
math::LatentOptions<double> parse_options(OptionList options);

// A prior of numbers, read by the options' scale of the prior.
math::FixedPrior fixed_prior(const math::LatentOptions<double>& options, double mean, double raw);

#define VAE_FUSED_COUNT(name) +1
constexpr size_t kDeviceScalars = VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_COUNT);
#undef VAE_FUSED_COUNT

// What a call chooses about its Gaussians: the numbers, and the tensors that replace some of them.
// A tensor is 0-d, of the arithmetic's dtype, and where the kernel runs. It gets no gradient.
struct GivenOptions {
  OptionList numbers = std::nullopt;
#define VAE_FUSED_TENSOR(name) OptionalTensor name = std::nullopt;
  VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_TENSOR)
#undef VAE_FUSED_TENSOR

  // visit(name, tensor) for each tensor, present or absent.
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

  // Where kernels that compute with `options` read the tensors.
  math::DeviceScalars pointers(const math::LatentOptions<double>& options) const;

 private:
  template <typename Self, typename Visit>
  static void for_each_scalar(Self& self, const Visit& visit) {
#define VAE_FUSED_VISIT_TENSOR(name) visit(#name, self.name);
    VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_VISIT_TENSOR)
#undef VAE_FUSED_VISIT_TENSOR
  }
};

// The parameters of an operator for these options, a `GivenOptions` of them, and the arguments of
// an operator from a GivenOptions `given`.
#define VAE_FUSED_SCALAR_PARAMETER(name) , const OptionalTensor& name
#define VAE_FUSED_SCALAR_ARGUMENT(name) , name
#define VAE_FUSED_SCALAR_OF_GIVEN(name) , given.name
#define VAE_FUSED_OPTION_PARAMETERS \
  OptionList options VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_SCALAR_PARAMETER)
#define VAE_FUSED_GIVEN_OPTIONS \
  GivenOptions { options VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_SCALAR_ARGUMENT) }
#define VAE_FUSED_OPTION_ARGUMENTS given.numbers VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_SCALAR_OF_GIVEN)

}  // namespace vae_fused
