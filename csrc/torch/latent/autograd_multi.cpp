// The autograd node of the operators of a list of tensors: as LatentBackward in autograd.cpp, it
// saves its inputs and the key, and its backward is one launch.
#include <utility>
#include <vector>

#include "torch/latent/ops.h"
#include "torch/latent/saved_options.h"

namespace vae_fused::autograd {
namespace {

struct Arguments {
  OptionalTensor key;
  OptionalGenerator generator;
  std::string_view reduction;
  GivenOptions options;
};

struct Outputs {
  std::vector<Tensor> z;
  Tensor kl, key;
};

Outputs run(at::TensorList mu, at::TensorList raw, const Arguments& a) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const GivenOptions& given = a.options;
  if (a.key) {
    VAE_FUSED_OP(reparameterize_kl_multi, "reparameterize_kl_multi", "");
    auto [z, kl] = op(mu, raw, *a.key, a.reduction, VAE_FUSED_OPTION_ARGUMENTS);
    return {std::move(z), kl, *a.key};
  }
  VAE_FUSED_OP(reparameterize_kl_multi_generator, "reparameterize_kl_multi", "generator");
  auto [z, kl, key] = op(mu, raw, a.generator, a.reduction, VAE_FUSED_OPTION_ARGUMENTS);
  return {std::move(z), kl, key};
}

class LatentMultiBackward : public SavingNode<LatentMultiBackward> {
 public:
  static constexpr const char* kName = "LatentMultiBackward";

  // The slots are those of mu, of raw, of the key and of the options that are tensors. The first
  // two have an edge each.
  LatentMultiBackward(at::TensorList mu, at::TensorList raw, const Tensor& key, const Arguments& a)
      : SavingNode(mu.size() + raw.size() + 1 + scalar_slots(a.options), a.reduction, std::nullopt,
                   a.options.numbers) {
    size_t slot = 0;
    for (const at::TensorList list : {mu, raw}) {
      for (const Tensor& t : list) {
        save(slot++, t);
        add_next_edge(torch::autograd::impl::gradient_edge(t));
      }
    }
    save(slot, key);
    save_scalars(*this, slot + 1, a.options);
  }

  static variable_list backward(const SavedCall& call, const variable_list& grads) {
    const size_t n = call.wanted.size() / 2;
    const at::TensorList tensors = call.tensors;
    c10::List<OptionalTensor> grad_z;
    for (size_t k = 0; k < n; ++k) grad_z.push_back(dense(grads[k]));
    const GivenOptions given = saved_options(call, 2 * n + 1);
    const BelowAutograd guard;
    VAE_FUSED_OP(reparameterize_kl_multi_backward, "reparameterize_kl_multi_backward", "");
    auto [result, grad_raw] =
        op(grad_z, optional(grads[n]), tensors.slice(0, n), tensors.slice(n, n), tensors[2 * n],
           call.arguments.reduction, VAE_FUSED_OPTION_ARGUMENTS);
    result.insert(result.end(), grad_raw.begin(), grad_raw.end());
    return result;
  }
};

Outputs apply(at::TensorList mu, at::TensorList raw, const Arguments& a) {
  refuse_transforms();
  bool requires_grad = false;
  for (const at::TensorList list : {mu, raw}) {
    for (const Tensor& t : list) {
      refuse_tangent(t);
      requires_grad = requires_grad || t.requires_grad();
    }
  }
  refuse_gradients(a.options);
  Outputs out = run(mu, raw, a);
  if (!requires_grad || !at::GradMode::is_enabled()) return out;
  const auto node = make_node<LatentMultiBackward>(mu, raw, out.key, a);
  for (const Tensor& z : out.z) set_output(node, z);
  set_output(node, out.kl);
  return out;
}

}  // namespace

std::tuple<std::vector<Tensor>, Tensor> reparameterize_kl_multi(at::TensorList mu,
                                                                at::TensorList raw,
                                                                const Tensor& key,
                                                                std::string_view reduction,
                                                                VAE_FUSED_OPTION_PARAMETERS) {
  Outputs out = apply(mu, raw, {key, std::nullopt, reduction, VAE_FUSED_GIVEN_OPTIONS});
  return {std::move(out.z), out.kl};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor> reparameterize_kl_multi_generator(
    at::TensorList mu, at::TensorList raw, OptionalGenerator generator, std::string_view reduction,
    VAE_FUSED_OPTION_PARAMETERS) {
  Outputs out = apply(mu, raw, {std::nullopt, generator, reduction, VAE_FUSED_GIVEN_OPTIONS});
  return {std::move(out.z), out.kl, out.key};
}

}  // namespace vae_fused::autograd
