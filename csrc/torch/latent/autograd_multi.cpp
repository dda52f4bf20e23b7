// The autograd node of the operators for a list of tensors. Like LatentBackward in autograd.cpp, it
// saves its inputs and the key, and its backward pass is one launch.
#include <utility>
#include <vector>

#include "torch/latent/ops.h"
#include "torch/latent/saved_options.h"

namespace vae_fused::autograd {
namespace {

// The operator of a call.
enum class Call { kOfKey, kOfGenerator, kKl };

struct Arguments {
  Call call;
  OptionalTensor key;
  OptionalGenerator generator;
  std::string_view reduction;
  GivenPriors priors;
  GivenOptions options;
};

struct Outputs {
  std::vector<Tensor> z;
  Tensor kl, key;
};

// The operator arguments for the priors and options of a call.
#define VAE_FUSED_LIST_ARGUMENTS priors.mean, priors.raw, priors.numbers, VAE_FUSED_OPTION_ARGUMENTS

Outputs run(at::TensorList mu, at::TensorList raw, const Arguments& a) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const GivenOptions& given = a.options;
  const GivenPriors& priors = a.priors;
  switch (a.call) {
    case Call::kOfKey: {
      VAE_FUSED_OP(reparameterize_kl_multi, "reparameterize_kl_multi", "");
      auto [z, kl] = op(mu, raw, *a.key, a.reduction, VAE_FUSED_LIST_ARGUMENTS);
      return {std::move(z), kl, *a.key};
    }
    case Call::kOfGenerator: {
      VAE_FUSED_OP(reparameterize_kl_multi_generator, "reparameterize_kl_multi", "generator");
      auto [z, kl, key] = op(mu, raw, a.generator, a.reduction, VAE_FUSED_LIST_ARGUMENTS);
      return {std::move(z), kl, key};
    }
    default: {
      VAE_FUSED_OP(gaussian_kl_multi, "gaussian_kl_multi", "");
      return {{}, op(mu, raw, a.reduction, VAE_FUSED_LIST_ARGUMENTS), {}};
    }
  }
}

struct SavedListArguments : SavedArguments {
  std::vector<double> prior_numbers;

  SavedListArguments() = default;
  SavedListArguments(const Arguments& a, bool has_z)
      : SavedArguments(a.reduction, std::nullopt, a.options.numbers, /*packed_dim=*/0, has_z),
        prior_numbers(a.priors.numbers.vec()) {}

  template <typename Visit>
  void for_each(const Visit& visit) {
    SavedArguments::for_each(visit);
    visit(prior_numbers);
  }
  template <typename Visit>
  void for_each(const Visit& visit) const {
    SavedArguments::for_each(visit);
    visit(prior_numbers);
  }
};

class LatentMultiBackward : public SavingNode<LatentMultiBackward, SavedListArguments> {
 public:
  static constexpr const char* kName = "LatentMultiBackward";

  // The slots contain, in this order: mu and raw, each of which has an edge; the means and the raw
  // scales of the priors; the key; and the options that are tensors.
  LatentMultiBackward(at::TensorList mu, at::TensorList raw, const Outputs& out, const Arguments& a)
      : SavingNode(4 * mu.size() + 1 + scalar_slots(a.options), a, !out.z.empty()) {
    size_t slot = 0;
    for (const at::TensorList list : {mu, raw}) {
      for (const Tensor& t : list) {
        save(slot++, t);
        add_next_edge(torch::autograd::impl::gradient_edge(t));
      }
    }
    for (const OptionalTensors& list : {a.priors.mean, a.priors.raw}) {
      for (size_t k = 0; k < list.size(); ++k) save(slot + k, list.get(k));
      slot += mu.size();
    }
    save(slot, out.key);
    save_scalars(*this, slot + 1, a.options);
  }

  static variable_list backward(const SavedCallWith<SavedListArguments>& call,
                                const variable_list& grads) {
    const size_t n = call.needs_grad.size() / 2;
    const at::TensorList tensors = call.tensors;
    OptionalTensors grad_z;
    for (size_t k = 0; k < n; ++k) {
      grad_z.push_back(call.arguments.has_z ? dense(grads[k]) : std::nullopt);
    }
    const GivenPriors priors = {present(tensors.slice(2 * n, n)), present(tensors.slice(3 * n, n)),
                                call.arguments.prior_numbers};
    const GivenOptions given = saved_options(call, 4 * n + 1);
    const BelowAutograd guard;
    VAE_FUSED_OP(reparameterize_kl_multi_backward, "reparameterize_kl_multi_backward", "");
    auto [result, grad_raw] =
        op(grad_z, optional(grads.back()), tensors.slice(0, n), tensors.slice(n, n),
           optional(tensors[4 * n]), call.arguments.reduction, VAE_FUSED_LIST_ARGUMENTS);
    result.insert(result.end(), grad_raw.begin(), grad_raw.end());
    return result;
  }

 private:
  // Converts a list in which some tensors may be undefined. Returns an empty list if all tensors
  // are undefined.
  static OptionalTensors present(at::TensorList list) {
    OptionalTensors result;
    const auto defined = [](const Tensor& t) { return t.defined(); };
    if (std::none_of(list.begin(), list.end(), defined)) return result;
    for (const Tensor& t : list) result.push_back(optional(t));
    return result;
  }
};

void refuse_gradient(const Tensor& t) {
  refuse_tangent(t);
  TORCH_CHECK_VALUE(!at::GradMode::is_enabled() || !t.requires_grad(),
                    "vae_fused: prior must not require a gradient, because the operators of lists "
                    "compute none; call the function of the same name in vae_fused");
}

Outputs apply(at::TensorList mu, at::TensorList raw, const Arguments& a) {
  refuse_transforms();
  bool requires_grad = false;
  for (const at::TensorList list : {mu, raw}) {
    for (const Tensor& t : list) {
      refuse_tangent(t);
      requires_grad = requires_grad || t.requires_grad();
    }
  }
  for (const OptionalTensors& list : {a.priors.mean, a.priors.raw}) {
    for (size_t k = 0; k < list.size(); ++k) {
      if (const OptionalTensor t = list.get(k)) refuse_gradient(*t);
    }
  }
  refuse_gradients(a.options);
  Outputs out = run(mu, raw, a);
  if (!requires_grad || !at::GradMode::is_enabled()) return out;
  const auto node = make_node<LatentMultiBackward>(mu, raw, out, a);
  for (const Tensor& z : out.z) set_output(node, z);
  set_output(node, out.kl);
  return out;
}

}  // namespace

std::tuple<std::vector<Tensor>, Tensor> reparameterize_kl_multi(at::TensorList mu,
                                                                at::TensorList raw,
                                                                const Tensor& key,
                                                                std::string_view reduction,
                                                                VAE_FUSED_LIST_OPTIONS) {
  Outputs out = apply(mu, raw,
                      {Call::kOfKey, key, std::nullopt, reduction, VAE_FUSED_GIVEN_PRIORS,
                       VAE_FUSED_GIVEN_OPTIONS});
  return {std::move(out.z), out.kl};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor> reparameterize_kl_multi_generator(
    at::TensorList mu, at::TensorList raw, OptionalGenerator generator, std::string_view reduction,
    VAE_FUSED_LIST_OPTIONS) {
  Outputs out = apply(mu, raw,
                      {Call::kOfGenerator, std::nullopt, generator, reduction,
                       VAE_FUSED_GIVEN_PRIORS, VAE_FUSED_GIVEN_OPTIONS});
  return {std::move(out.z), out.kl, out.key};
}

Tensor gaussian_kl_multi(at::TensorList mu, at::TensorList raw, std::string_view reduction,
                         VAE_FUSED_LIST_OPTIONS) {
  return apply(mu, raw,
               {Call::kKl, std::nullopt, std::nullopt, reduction, VAE_FUSED_GIVEN_PRIORS,
                VAE_FUSED_GIVEN_OPTIONS})
      .kl;
}

}  // namespace vae_fused::autograd
