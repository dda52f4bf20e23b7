// The autograd node of `nll`. It saves the inputs and the rows of a softmax. Its backward pass
// calls the operator `nll_backward`.
#include "torch/likelihood/ops.h"
#include "torch/node.h"

namespace vae_fused::autograd {
namespace {

class NllBackward : public SavingNode<NllBackward> {
 public:
  static constexpr const char* kName = "NllBackward";
  // The slots of the saved tensors. Each of the first five has an edge with the same index.
  enum Slot { kOutput, kSecond, kThird, kTarget, kLibrary, kMask, kWeight, kRows, kSlots };
  static constexpr size_t kEdges = kMask;

  NllBackward(VAE_FUSED_OBSERVATIONS, VAE_FUSED_NUMBERS_OF_LOSS, const Tensor& rows)
      : SavingNode(kSlots, reduction, dim, options) {
    save(kOutput, output);
    save(kSecond, second);
    save(kThird, third);
    save(kTarget, target);
    save(kLibrary, library);
    save(kMask, mask);
    save(kWeight, weight);
    save(kRows, rows);
    set_next_edges(torch::autograd::collect_next_edges(output, second, third, target, library));
  }

  static variable_list backward(const SavedCall& call, const variable_list& grads) {
    variable_list result(kEdges);
    if (!grads[0].defined()) return result;
    const SavedArguments& a = call.arguments;
    const auto saved = [&](Slot slot) { return optional(call.tensors[slot]); };
    std::array<bool, kEdges> needs_grad;
    std::copy_n(call.needs_grad.begin(), kEdges, needs_grad.begin());
    const BelowAutograd guard;
    VAE_FUSED_OP(nll_backward, "nll_backward", "");
    std::tie(result[kOutput], result[kSecond], result[kThird], result[kTarget], result[kLibrary]) =
        op(*dense(grads[0]), call.tensors[kOutput], saved(kSecond), saved(kThird),
           call.tensors[kTarget], saved(kLibrary), saved(kMask), saved(kWeight),
           call.tensors[kRows], a.reduction, a.dim_ref(), a.options_ref(), needs_grad);
    return result;
  }
};

}  // namespace

void check_target_grad(const Tensor& target, OptionList options) {
  TORCH_CHECK_VALUE(
      !target.requires_grad() || data_of(OptionNumbers(options).kind()) == Data::kReal,
      "vae_fused: target must not require a gradient for this likelihood, because none is "
      "computed; pass it with .detach()");
}

std::tuple<Tensor, Tensor> nll(VAE_FUSED_OBSERVATIONS, VAE_FUSED_NUMBERS_OF_LOSS) {
  refuse_transforms();
  for (const OptionalTensor& t :
       {OptionalTensor(output), second, third, OptionalTensor(target), library}) {
    if (t) refuse_tangent(*t);
  }
  check_target_grad(target, options);
  const auto out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    VAE_FUSED_OP(nll, "nll", "");
    return op(output, second, third, target, library, mask, weight, reduction, dim, options);
  }();
  const bool is_recorded =
      at::GradMode::is_enabled() &&
      any_requires_grad(OptionalTensor(output), second, third, OptionalTensor(target), library);
  if (!is_recorded) return out;
  const auto& [loss, rows] = out;
  const auto node = make_node<NllBackward>(output, second, third, target, library, mask, weight,
                                           reduction, dim, options, rows);
  set_output(node, loss);
  set_output(node, rows, /*is_differentiable=*/false);
  return out;
}

}  // namespace vae_fused::autograd
