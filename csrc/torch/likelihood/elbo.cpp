// The operators of the evidence lower bound: nll with a KL term, in one launch per direction.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include "torch/check.h"
#include "torch/launch.h"
#include "torch/likelihood/gradients.h"
#include "torch/likelihood/kl_term.h"

namespace vae_fused {
namespace {

// Returns the sum of two gradients of the same shape, either of which may be absent.
OptionalTensor sum_of(const OptionalTensor& a, const OptionalTensor& b) {
  if (!a.has_value() || !b.has_value()) return a.has_value() ? a : b;
  return a->add(*b);
}

void check_kl(const Tensor& kl, const Tensor& output) {
  TORCH_CHECK(kl.device() == output.device(), "vae_fused: kl must be on the device of output, ",
              output.device(), ", got ", kl.device());
  TORCH_CHECK_VALUE(output.dim() > 0,
                    "vae_fused: output must have a batch in dimension 0, got shape ",
                    output.sym_sizes());
  if (kl.dim() == 0) return;
  const bool fits = kl.sym_size(0) == output.sym_size(0);
  TORCH_CHECK_VALUE(fits, "vae_fused: kl must have the batch of output, ", output.sym_size(0),
                    ", in dimension 0, got shape ", kl.sym_sizes());
}

}  // namespace

ElboResults elbo_loss(VAE_FUSED_OBSERVATIONS, VAE_FUSED_KL_TERM, VAE_FUSED_NUMBERS_OF_LOSS,
                      VAE_FUSED_NUMBERS_OF_KL, std::array<bool, 5> grad_mask) {
  const ObservedTensors call(output, second, third, target, library, mask, weight, options);
  const Reduction reduced = parse_reduction(reduction, dim, output.dim());
  const bool has_grads = std::any_of(grad_mask.begin(), grad_mask.end(), [](bool b) { return b; });
  TORCH_CHECK_TYPE(!has_grads || output.scalar_type() != at::kHalf,
                   "vae_fused: grad must be \"backward\" for float16 outputs, because gradients "
                   "that no GradScaler has scaled yet underflow, got \"forward\"");
  const auto shape = reduced.shape(output);
  TORCH_CHECK_VALUE(
      !has_grads || shape.empty(),
      "vae_fused: grad must be \"backward\" unless the loss is 0-d, got \"forward\" with shape ",
      c10::SymIntArrayRef(shape));
  const auto new_result = [&] { return at::empty_symint(shape, call.arithmetic_options()); };
  const Tensor loss = new_result(), rows = at::empty_symint(call.rows_sizes(), loss.options());
  Tensor reconstruction, reduced_kl;
  if (kl.has_value()) {
    TORCH_CHECK_VALUE(
        shape.size() <= 1,
        "vae_fused: the loss must be 0-d or have one dimension where kl is given, got shape ",
        c10::SymIntArrayRef(shape));
    check_kl(*kl, output);
    reconstruction = new_result();
    reduced_kl = new_result();
  }
  const c10::DeviceGuard guard(output.device());
  NllParams params;
  if (kl.has_value() && !output.is_meta()) {
    params.kl = bind_kl(*kl, {beta, capacity, beta_value, capacity_value}, reduced, loss.numel(),
                        loss.scalar_type());
    params.kl.loss = loss.mutable_data_ptr();
    params.kl.kl = reduced_kl.mutable_data_ptr();
  }
  const Tensor& nll = kl.has_value() ? reconstruction : loss;
  Gradients grads;
  if (!output.is_meta() && output.numel() == 0) {
    nll.fill_(0.0 * reduced.factor(output));
    TORCH_CHECK_VALUE(!kl.has_value(),
                      "vae_fused: output must have a batch in dimension 0, got shape ",
                      output.sizes());
  }
  if (has_grads) {
    NllBackwardParams both;
    both.nll.data = output.is_meta() ? nullptr : nll.mutable_data_ptr();
    both.kl = params.kl;
    if (call.options.is_softmax() && !output.is_meta() && output.numel() != 0) {
      compute_rows(call, rows);
    }
    grads = compute_gradients(std::nullopt, call, output, second, third, target, library, mask,
                              weight, rows, reduced, grad_mask, both);
  } else if (!output.is_meta() && output.numel() != 0) {
    compute_nll(call, rows, reduced, nll, params);
  }
  const auto& [g0, g1, g2, g3, g4] = grads;
  return {loss,
          optional(reconstruction),
          optional(reduced_kl),
          rows,
          optional(g0),
          optional(g1),
          optional(g2),
          optional(g3),
          optional(g4)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> elbo_loss_backward(
    const OptionalTensor& grad_loss, const OptionalTensor& grad_reconstruction,
    const OptionalTensor& grad_kl, VAE_FUSED_OBSERVATIONS, VAE_FUSED_KL_TERM, const Tensor& rows,
    VAE_FUSED_NUMBERS_OF_LOSS, VAE_FUSED_NUMBERS_OF_KL, std::array<bool, 7> output_mask) {
  const ObservedTensors call(output, second, third, target, library, mask, weight, options);
  const Reduction reduced = parse_reduction(reduction, dim, output.dim());
  const auto shape = reduced.shape(output);
  const at::ScalarType wide = arithmetic_dtype(output);
  for (const OptionalTensor& grad : {grad_loss, grad_reconstruction, grad_kl}) {
    if (grad.has_value()) check_tensor(*grad, "grad", shape, wide, output);
  }
  const c10::DeviceGuard guard(output.device());
  const OptionalTensor grad = sum_of(grad_loss, grad_reconstruction);
  std::array<bool, 5> nll_mask{};
  if (grad.has_value()) std::copy_n(output_mask.begin(), nll_mask.size(), nll_mask.begin());
  const std::array<bool, 2> kl_mask = {kl.has_value() && output_mask[5],
                                       kl.has_value() && output_mask[6]};
  NllBackwardParams params;
  params.dtype = dtype_of(output);
  Tensor grad_of_kl, grad_of_beta;
  std::optional<KlGradients> kl_grads;
  if (kl.has_value() && (kl_mask[0] || kl_mask[1])) {
    const KlNumbers numbers{beta, capacity, beta_value, capacity_value};
    check_kl(*kl, output);
    if (output.is_meta()) {
      if (kl_mask[0]) grad_of_kl = at::empty_like(*kl);
      if (kl_mask[1] && beta.has_value()) grad_of_beta = at::empty_like(*beta);
    } else {
      int64_t results = 1;
      for (const c10::SymInt& size : shape) results *= size.expect_int();
      params.kl = bind_kl(*kl, numbers, reduced, results, wide);
      kl_grads.emplace(params.kl, grad_loss, grad_kl, *kl, numbers, kl_mask);
      grad_of_kl = kl_grads->kl;
      grad_of_beta = kl_grads->beta;
    }
  }
  const Gradients grads = compute_gradients(grad, call, output, second, third, target, library,
                                            mask, weight, rows, reduced, nll_mask, params);
  return std::tuple_cat(std::tuple_cat(grads), std::make_tuple(grad_of_kl, grad_of_beta));
}

std::tuple<Tensor, Tensor> kl_term_backward(const OptionalTensor& grad_loss,
                                            const OptionalTensor& grad_kl, const Tensor& kl,
                                            const OptionalTensor& beta,
                                            const OptionalTensor& capacity,
                                            std::string_view reduction, VAE_FUSED_NUMBERS_OF_KL,
                                            std::array<bool, 2> output_mask) {
  const KlNumbers numbers{beta, capacity, beta_value, capacity_value};
  if (kl.is_meta()) {
    const bool has_beta = output_mask[1] && beta.has_value();
    return {output_mask[0] ? at::empty_like(kl) : Tensor(),
            has_beta ? at::empty_like(*beta) : Tensor()};
  }
  const c10::DeviceGuard guard(kl.device());
  NllBackwardParams params;
  params.dtype = dtype_of(kl);
  params.kl =
      bind_kl(kl, numbers, parse_reduction(reduction, std::nullopt, kl.dim()), 1, kl.scalar_type());
  const KlGradients grads(params.kl, grad_loss, grad_kl, kl, numbers, output_mask);
  if (params.kl.has_gradients()) VAE_FUSED_LAUNCH(kl_backward, params, kl.device());
  return {grads.kl, grads.beta};
}

}  // namespace vae_fused
