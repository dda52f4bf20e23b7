#include "torch/likelihood/kl_term.h"

#include <ATen/ops/empty.h>

#include "torch/check.h"

namespace vae_fused {

KlTerm bind_kl(const Tensor& kl, const KlNumbers& numbers, const Reduction& reduced,
               int64_t results, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(kl.dim() <= 1, "vae_fused: kl must have 0 or 1 dimensions, got shape ",
                    kl.sizes());
  TORCH_CHECK_VALUE(results == 1 || results == kl.numel(), "vae_fused: kl must have ", results,
                    " values, one for each loss, got ", kl.numel());
  TORCH_CHECK_TYPE(kl.scalar_type() == dtype, "vae_fused: kl must have dtype ", dtype, ", got ",
                   kl.scalar_type());
  TORCH_CHECK_VALUE(reduced.divisor != Reduction::Divisor::kNumel,
                    "vae_fused: reduction must be batchmean, sum or sample where kl is given, got "
                    "'mean'; divide the sum");
  KlTerm term;
  term.samples = kl.const_data_ptr();
  term.count = kl.numel();
  term.stride = kl.dim() == 1 ? kl.stride(0) : 1;
  term.factor = kl.dim() == 0 ? 1.0 : reduced.factor(kl);
  term.results = results;
  const auto value_of = [&](const OptionalTensor& t, const char* name) -> const void* {
    if (!t.has_value()) return nullptr;
    check_tensor(*t, name, {}, dtype, kl);
    return t->const_data_ptr();
  };
  term.beta = value_of(numbers.beta, "beta");
  term.beta_value = numbers.beta_value;
  term.capacity = value_of(numbers.capacity, "capacity");
  term.capacity_value = numbers.capacity_value.value_or(0.0);
  term.has_capacity = numbers.capacity.has_value() || numbers.capacity_value.has_value();
  return term;
}

KlGradients::KlGradients(KlTerm& term, const OptionalTensor& grad_loss,
                         const OptionalTensor& grad_kl, const Tensor& kl, const KlNumbers& numbers,
                         std::array<bool, 2> output_mask) {
  const auto bind = [](const OptionalTensor& given, OptionalTensor& contiguous) -> const void* {
    if (!given.has_value()) return nullptr;
    contiguous = given->contiguous();
    return contiguous->const_data_ptr();
  };
  term.grad_loss = bind(grad_loss, grad_loss_);
  term.grad_kl = bind(grad_kl, grad_kl_);
  if (output_mask[0]) {
    this->kl = at::empty(kl.sizes(), kl.options());
    term.grad_samples = this->kl.mutable_data_ptr();
  }
  if (output_mask[1] && numbers.beta.has_value()) {
    beta = at::empty({}, kl.options());
    term.grad_beta = beta.mutable_data_ptr();
  }
}

}  // namespace vae_fused
