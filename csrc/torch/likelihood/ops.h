// The C++ signatures of the likelihood operators, in the order of library.cpp. The functions in
// `autograd` wrap the functions of the same name and call them through the dispatcher.
#pragma once

#include <array>
#include <string_view>
#include <tuple>

#include "torch/likelihood/options.h"
#include "torch/tensor.h"

namespace vae_fused {

// The parameters that operators share, as in library.cpp.
#define VAE_FUSED_OBSERVATIONS                                                         \
  const Tensor &output, const OptionalTensor &second, const OptionalTensor &third,     \
      const Tensor &target, const OptionalTensor &library, const OptionalTensor &mask, \
      const OptionalTensor &weight
#define VAE_FUSED_NUMBERS_OF_LOSS \
  std::string_view reduction, at::OptionalIntArrayRef dim, OptionList options
#define VAE_FUSED_KL_TERM \
  const OptionalTensor &kl, const OptionalTensor &beta, const OptionalTensor &capacity
#define VAE_FUSED_NUMBERS_OF_KL double beta_value, std::optional<double> capacity_value

std::tuple<Tensor, Tensor> nll(VAE_FUSED_OBSERVATIONS, VAE_FUSED_NUMBERS_OF_LOSS);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nll_backward(const Tensor& grad,
                                                                VAE_FUSED_OBSERVATIONS,
                                                                const Tensor& rows,
                                                                VAE_FUSED_NUMBERS_OF_LOSS,
                                                                std::array<bool, 5> output_mask);

// Without a KL, the reconstruction and the reduced KL are absent. `grad_mask` selects the
// gradients. An absent result is std::nullopt rather than an undefined tensor, because
// ahead-of-time compilers write the results of a call to a file, and can represent absence only in
// optional results.
using ElboResults = std::tuple<Tensor, OptionalTensor, OptionalTensor, Tensor, OptionalTensor,
                               OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;

ElboResults elbo_loss(VAE_FUSED_OBSERVATIONS, VAE_FUSED_KL_TERM, VAE_FUSED_NUMBERS_OF_LOSS,
                      VAE_FUSED_NUMBERS_OF_KL, std::array<bool, 5> grad_mask);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> elbo_loss_backward(
    const OptionalTensor& grad_loss, const OptionalTensor& grad_reconstruction,
    const OptionalTensor& grad_kl, VAE_FUSED_OBSERVATIONS, VAE_FUSED_KL_TERM, const Tensor& rows,
    VAE_FUSED_NUMBERS_OF_LOSS, VAE_FUSED_NUMBERS_OF_KL, std::array<bool, 7> output_mask);
std::tuple<Tensor, Tensor> kl_term_backward(const OptionalTensor& grad_loss,
                                            const OptionalTensor& grad_kl, const Tensor& kl,
                                            const OptionalTensor& beta,
                                            const OptionalTensor& capacity,
                                            std::string_view reduction, VAE_FUSED_NUMBERS_OF_KL,
                                            std::array<bool, 2> output_mask);

namespace autograd {

// Raises an error if the target requires a gradient but the likelihood does not provide one.
void check_target_grad(const Tensor& target, OptionList options);

decltype(vae_fused::nll) nll;
decltype(vae_fused::elbo_loss) elbo_loss;

}  // namespace autograd
}  // namespace vae_fused
