// The autograd node of the operators of a list of tensors: as Latent in autograd.cpp, it saves its
// inputs and the key, and its backward is one launch.
#include <ATen/ops/stack.h>

#include "torch/node.h"
#include "torch/rng.h"

namespace vae_fused::autograd {
namespace {

struct Arguments {
  OptionalTensor key;
  OptionalGenerator generator;
  std::string_view reduction;
  OptionList options;
};

// z of each tensor, kl, key.
variable_list run(at::TensorList mu, at::TensorList raw, const Arguments& a) {
  variable_list out;
  if (a.key) {
    VAE_FUSED_OP(reparameterize_kl_multi, "reparameterize_kl_multi", "");
    auto [z, kl] = op(mu, raw, *a.key, a.reduction, a.options);
    out = z;
    out.insert(out.end(), {kl, *a.key});
  } else {
    VAE_FUSED_OP(reparameterize_kl_multi_generator, "reparameterize_kl_multi", "generator");
    auto [z, kl, key] = op(mu, raw, a.generator, a.reduction, a.options);
    out = z;
    out.insert(out.end(), {kl, key});
  }
  return out;
}

class LatentMulti : public torch::autograd::Function<LatentMulti> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList mu, at::TensorList raw,
                               const Arguments& a) {
    at::AutoDispatchBelowADInplaceOrView guard;
    variable_list out = run(mu, raw, a);
    const Tensor key = out.back();
    if (a.key) out.pop_back();  // the caller's own
    ctx->set_materialize_grads(false);
    variable_list saved = mu.vec();
    saved.insert(saved.end(), raw.begin(), raw.end());
    saved.push_back(key);
    ctx->save_for_backward(saved);
    Numbers::save(ctx, a.reduction, a.options);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const size_t n = saved.size() / 2;
    const Tensor& key = saved.back();
    const Numbers numbers(ctx);
    variable_list result(2 * n + 1);
    if (at::GradMode::is_enabled()) {
      differentiable(saved, grads, numbers.reduction, numbers.options, result);
      return result;
    }
    at::AutoDispatchBelowADInplaceOrView guard;  // as in Latent
    c10::List<OptionalTensor> grad_z;
    for (size_t k = 0; k < n; ++k) grad_z.push_back(dense(grads[k]));
    VAE_FUSED_OP(reparameterize_kl_multi_backward, "reparameterize_kl_multi_backward", "");
    const at::TensorList all(saved);
    auto [grad_mu, grad_raw] = op(grad_z, optional(grads[n]), all.slice(0, n), all.slice(n, n), key,
                                  numbers.reduction, numbers.options);
    for (size_t k = 0; k < n; ++k) {
      result[k] = grad_mu[k];
      result[n + k] = grad_raw[k];
    }
    return result;
  }

 private:
  // A call for each tensor, its key as far on as the blocks of noise before it.
  static void differentiable(const variable_list& saved, const variable_list& grads,
                             std::string_view reduction, OptionList options,
                             variable_list& result) {
    const size_t n = saved.size() / 2;
    const Tensor key = saved.back().view(at::kLong);
    int64_t blocks = 0;
    for (size_t k = 0; k < n; ++k) {
      const Tensor &mu = saved[k], &raw = saved[n + k];
      const Tensor own = at::stack({key.select(0, 0), key.select(0, 1).add(blocks)});
      const auto [grad_mu, grad_raw, grad_eps, grad_mean, grad_prior] = differentiable_backward(
          {grads[k], grads[n], mu, raw, Tensor(), own, Tensor(), Tensor(), Tensor(), options},
          parse_reduction(reduction, std::nullopt, mu.dim()));
      result[k] = grad_mu;
      result[n + k] = grad_raw;
      blocks += noise_blocks(mu);
    }
  }
};

variable_list apply(at::TensorList mu, at::TensorList raw, const Arguments& a) {
  if (std::any_of(mu.begin(), mu.end(), is_differentiable) ||
      std::any_of(raw.begin(), raw.end(), is_differentiable)) {
    return LatentMulti::apply(mu, raw, a);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return run(mu, raw, a);
}

}  // namespace

std::tuple<std::vector<Tensor>, Tensor> reparameterize_kl_multi(at::TensorList mu,
                                                                at::TensorList raw,
                                                                const Tensor& key,
                                                                std::string_view reduction,
                                                                OptionList options) {
  const auto out = apply(mu, raw, {key, std::nullopt, reduction, options});
  return {{out.begin(), out.begin() + mu.size()}, out[mu.size()]};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor> reparameterize_kl_multi_generator(
    at::TensorList mu, at::TensorList raw, OptionalGenerator generator, std::string_view reduction,
    OptionList options) {
  const auto out = apply(mu, raw, {std::nullopt, generator, reduction, options});
  return {{out.begin(), out.begin() + mu.size()}, out[mu.size()], out[mu.size() + 1]};
}

}  // namespace vae_fused::autograd
