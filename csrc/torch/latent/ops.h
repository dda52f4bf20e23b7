// The C++ signatures of the operators, in the order of library.cpp. The functions in `autograd`
// wrap the functions of the same name and call them through the dispatcher.
#pragma once

#include <ATen/core/List.h>

#include <array>
#include <string_view>
#include <tuple>

#include "torch/latent/options.h"
#include "torch/tensor.h"

namespace vae_fused {

// The parameters that operators share, as in library.cpp.
#define VAE_FUSED_REDUCTION std::string_view reduction, at::OptionalIntArrayRef dim
#define VAE_FUSED_OPTIONS const OptionalTensor &mask, VAE_FUSED_OPTION_PARAMETERS
#define VAE_FUSED_PRIOR_AND_OPTIONS \
  const OptionalTensor &prior_mean, const OptionalTensor &prior_raw, VAE_FUSED_OPTIONS
#define VAE_FUSED_SAMPLES at::OptionalSymIntArrayRef sample_shape
#define VAE_FUSED_NOISE const OptionalTensor &eps, const OptionalTensor &key
#define VAE_FUSED_LIST_OPTIONS                                         \
  const OptionalTensors &prior_mean, const OptionalTensors &prior_raw, \
      c10::ArrayRef<double> prior_numbers, VAE_FUSED_OPTION_PARAMETERS

// The priors of a list of tensors: a mean and a raw scale for each tensor, as tensors or as
// numbers.
using OptionalTensors = c10::List<OptionalTensor>;
struct GivenPriors {
  OptionalTensors mean, raw;      // empty if there are no tensors
  c10::ArrayRef<double> numbers;  // pairs; if empty, every prior has the numbers of the options
};
#define VAE_FUSED_GIVEN_PRIORS \
  GivenPriors { prior_mean, prior_raw, prior_numbers }

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE,
                                             VAE_FUSED_REDUCTION, VAE_FUSED_PRIOR_AND_OPTIONS,
                                             VAE_FUSED_SAMPLES);
std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_generator(const Tensor& mu, const Tensor& raw,
                                                               OptionalGenerator generator,
                                                               VAE_FUSED_REDUCTION,
                                                               VAE_FUSED_PRIOR_AND_OPTIONS,
                                                               VAE_FUSED_SAMPLES);
Tensor reparameterize(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE, VAE_FUSED_OPTIONS,
                      VAE_FUSED_SAMPLES);
std::tuple<Tensor, Tensor> reparameterize_generator(const Tensor& mu, const Tensor& raw,
                                                    OptionalGenerator generator, VAE_FUSED_OPTIONS,
                                                    VAE_FUSED_SAMPLES);
Tensor gaussian_kl(const Tensor& mu, const OptionalTensor& raw, VAE_FUSED_REDUCTION,
                   VAE_FUSED_PRIOR_AND_OPTIONS);
std::tuple<Tensor, Tensor> reparameterize_kl_moments(const Tensor& h, int64_t packed_dim,
                                                     VAE_FUSED_NOISE, VAE_FUSED_REDUCTION,
                                                     VAE_FUSED_PRIOR_AND_OPTIONS,
                                                     VAE_FUSED_SAMPLES);
std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_moments_generator(
    const Tensor& h, int64_t packed_dim, OptionalGenerator generator, VAE_FUSED_REDUCTION,
    VAE_FUSED_PRIOR_AND_OPTIONS, VAE_FUSED_SAMPLES);
std::tuple<Tensor, Tensor, Tensor, Tensor> reparameterize_kl_moments_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& h,
    int64_t packed_dim, VAE_FUSED_NOISE, VAE_FUSED_REDUCTION, VAE_FUSED_PRIOR_AND_OPTIONS,
    std::array<bool, 4> output_mask);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> reparameterize_kl_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& mu,
    const OptionalTensor& raw, VAE_FUSED_NOISE, VAE_FUSED_REDUCTION, VAE_FUSED_PRIOR_AND_OPTIONS,
    std::array<bool, 5> output_mask);

// Statistics of a batch, which have no gradient: see stats.cpp.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> latent_stats(const Tensor& mu, const Tensor& raw,
                                                                at::IntArrayRef dim,
                                                                VAE_FUSED_PRIOR_AND_OPTIONS);

// Lists of tensors: see multi.cpp.
std::tuple<std::vector<Tensor>, Tensor> reparameterize_kl_multi(at::TensorList mu,
                                                                at::TensorList raw,
                                                                const Tensor& key,
                                                                std::string_view reduction,
                                                                VAE_FUSED_LIST_OPTIONS);
std::tuple<std::vector<Tensor>, Tensor, Tensor> reparameterize_kl_multi_generator(
    at::TensorList mu, at::TensorList raw, OptionalGenerator generator, std::string_view reduction,
    VAE_FUSED_LIST_OPTIONS);
Tensor gaussian_kl_multi(at::TensorList mu, at::TensorList raw, std::string_view reduction,
                         VAE_FUSED_LIST_OPTIONS);
std::tuple<std::vector<Tensor>, std::vector<Tensor>> reparameterize_kl_multi_backward(
    const OptionalTensors& grad_z, const OptionalTensor& grad_kl, at::TensorList mu,
    at::TensorList raw, const OptionalTensor& key, std::string_view reduction,
    VAE_FUSED_LIST_OPTIONS);

// Returns the halves of h: mu and raw.
std::pair<Tensor, Tensor> unpack(const Tensor& h, int64_t packed_dim);

namespace autograd {

decltype(vae_fused::reparameterize_kl) reparameterize_kl;
decltype(vae_fused::reparameterize_kl_generator) reparameterize_kl_generator;
decltype(vae_fused::reparameterize) reparameterize;
decltype(vae_fused::reparameterize_generator) reparameterize_generator;
decltype(vae_fused::gaussian_kl) gaussian_kl;
decltype(vae_fused::latent_stats) latent_stats;
decltype(vae_fused::reparameterize_kl_moments) reparameterize_kl_moments;
decltype(vae_fused::reparameterize_kl_moments_generator) reparameterize_kl_moments_generator;
decltype(vae_fused::reparameterize_kl_multi) reparameterize_kl_multi;
decltype(vae_fused::reparameterize_kl_multi_generator) reparameterize_kl_multi_generator;
decltype(vae_fused::gaussian_kl_multi) gaussian_kl_multi;

}  // namespace autograd
}  // namespace vae_fused
