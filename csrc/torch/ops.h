// The operators' C++ signatures, in the order of library.cpp. The functions of `autograd` wrap
// those of the same name and call them through the dispatcher.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace vae_fused {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalGenerator = std::optional<at::Generator>;

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mu, const Tensor& logvar,
                                             const OptionalTensor& eps, const OptionalTensor& key,
                                             std::string_view reduction,
                                             at::OptionalIntArrayRef dim);
std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_generator(const Tensor& mu,
                                                               const Tensor& logvar,
                                                               OptionalGenerator generator,
                                                               std::string_view reduction,
                                                               at::OptionalIntArrayRef dim);
Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const OptionalTensor& eps,
                      const OptionalTensor& key);
std::tuple<Tensor, Tensor> reparameterize_generator(const Tensor& mu, const Tensor& logvar,
                                                    OptionalGenerator generator);
Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, std::string_view reduction,
                   at::OptionalIntArrayRef dim);
std::tuple<Tensor, Tensor> reparameterize_kl_moments(const Tensor& h, int64_t packed_dim,
                                                     const OptionalTensor& eps,
                                                     const OptionalTensor& key,
                                                     std::string_view reduction,
                                                     at::OptionalIntArrayRef dim);
std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_moments_generator(const Tensor& h,
                                                                       int64_t packed_dim,
                                                                       OptionalGenerator generator,
                                                                       std::string_view reduction,
                                                                       at::OptionalIntArrayRef dim);
std::tuple<Tensor, Tensor> reparameterize_kl_moments_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& h,
    int64_t packed_dim, const OptionalTensor& eps, const OptionalTensor& key,
    std::string_view reduction, at::OptionalIntArrayRef dim, std::array<bool, 2> output_mask);
std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& mu,
    const Tensor& logvar, const OptionalTensor& eps, const OptionalTensor& key,
    std::string_view reduction, at::OptionalIntArrayRef dim, std::array<bool, 3> output_mask);

// The halves of h: mu and logvar.
std::pair<Tensor, Tensor> unpack(const Tensor& h, int64_t packed_dim);

// The type of the arithmetic and of the KL.
at::ScalarType kl_dtype(const Tensor& mu);

namespace autograd {

decltype(vae_fused::reparameterize_kl) reparameterize_kl;
decltype(vae_fused::reparameterize_kl_generator) reparameterize_kl_generator;
decltype(vae_fused::reparameterize) reparameterize;
decltype(vae_fused::reparameterize_generator) reparameterize_generator;
decltype(vae_fused::gaussian_kl) gaussian_kl;
decltype(vae_fused::reparameterize_kl_moments) reparameterize_kl_moments;
decltype(vae_fused::reparameterize_kl_moments_generator) reparameterize_kl_moments_generator;

}  // namespace autograd
}  // namespace vae_fused
