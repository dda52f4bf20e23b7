// The autograd nodes of `elbo_loss`. ElboBackward computes the gradients in the backward pass, as
// the node of nll does. ElboScaling scales gradients that the forward launch has computed.
#include <ATen/SavedTensorHooks.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/graph_task.h>

#include <cmath>

#include "torch/check.h"
#include "torch/launch.h"
#include "torch/likelihood/kl_term.h"
#include "torch/likelihood/ops.h"
#include "torch/node.h"

namespace vae_fused::autograd {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

struct ElboArguments : SavedArguments {
  double beta_value = 1.0, capacity_value = kNone;
  bool has_hooks = false;  // whether a hook has seen the saved tensors

  ElboArguments() = default;
  ElboArguments(VAE_FUSED_NUMBERS_OF_LOSS, VAE_FUSED_NUMBERS_OF_KL, bool has_hooks = false)
      : SavedArguments(reduction, dim, options),
        beta_value(beta_value),
        capacity_value(capacity_value.value_or(kNone)),
        has_hooks(has_hooks) {}

  std::optional<double> capacity_or_none() const {
    return std::isnan(capacity_value) ? std::nullopt : std::optional(capacity_value);
  }

  template <typename Visit>
  void for_each(const Visit& visit) {
    SavedArguments::for_each(visit);
    visit(beta_value), visit(capacity_value), visit(has_hooks);
  }
  template <typename Visit>
  void for_each(const Visit& visit) const {
    SavedArguments::for_each(visit);
    visit(beta_value), visit(capacity_value), visit(has_hooks);
  }
};

// Returns the gradient of output k, if there is one.
OptionalTensor grad_of(const variable_list& grads, size_t k) {
  return k < grads.size() ? dense(grads[k]) : std::nullopt;
}

class ElboBackward : public SavingNode<ElboBackward, ElboArguments> {
 public:
  static constexpr const char* kName = "ElboBackward";
  // The slots of the saved tensors. Each of the first seven has an edge with the same index.
  enum Slot {
    kOutput,
    kSecond,
    kThird,
    kTarget,
    kLibrary,
    kKl,
    kBeta,
    kCapacity,
    kMask,
    kWeight,
    kRows,
    kSlots
  };
  static constexpr size_t kEdges = kCapacity;

  ElboBackward(VAE_FUSED_OBSERVATIONS, VAE_FUSED_KL_TERM, VAE_FUSED_NUMBERS_OF_LOSS,
               VAE_FUSED_NUMBERS_OF_KL, const Tensor& rows)
      : SavingNode(kSlots, reduction, dim, options, beta_value, capacity_value) {
    save(kOutput, output);
    save(kSecond, second);
    save(kThird, third);
    save(kTarget, target);
    save(kLibrary, library);
    save(kKl, kl);
    save(kBeta, beta);
    save(kCapacity, capacity);
    save(kMask, mask);
    save(kWeight, weight);
    save(kRows, rows);
    set_next_edges(
        torch::autograd::collect_next_edges(output, second, third, target, library, kl, beta));
  }

  static variable_list backward(const SavedCallWith<ElboArguments>& call,
                                const variable_list& grads) {
    variable_list result(kEdges);
    const auto grad = [&](size_t k) { return grad_of(grads, k); };
    if (!grad(0) && !grad(1) && !grad(2)) return result;
    const ElboArguments& a = call.arguments;
    const auto saved = [&](Slot slot) { return optional(call.tensors[slot]); };
    std::array<bool, kEdges> needs_grad;
    std::copy_n(call.needs_grad.begin(), kEdges, needs_grad.begin());
    const BelowAutograd guard;
    VAE_FUSED_OP(elbo_loss_backward, "elbo_loss_backward", "");
    std::tie(result[kOutput], result[kSecond], result[kThird], result[kTarget], result[kLibrary],
             result[kKl], result[kBeta]) =
        op(grad(0), grad(1), grad(2), call.tensors[kOutput], saved(kSecond), saved(kThird),
           call.tensors[kTarget], saved(kLibrary), saved(kMask), saved(kWeight), saved(kKl),
           saved(kBeta), saved(kCapacity), call.tensors[kRows], a.reduction, a.dim_ref(),
           a.options_ref(), a.beta_value, a.capacity_or_none(), needs_grad);
    return result;
  }
};

// Whether a kernel must not access the memory of a tensor directly, because the tensor has no
// memory or torch negates its values when they are read.
bool is_lazy(const Tensor& t) {
  return at::isTensorSubclassLike(t) || t.is_meta() || t.is_neg() || t._is_zerotensor();
}
bool is_lazy(const OptionalTensor& t) { return t.has_value() && is_lazy(*t); }

// Whether a buffer has no gaps and no overlapping elements, so that it can be scaled as an array.
bool is_array(const Tensor& t) { return t.is_non_overlapping_and_dense(); }

class ElboScaling : public SavingNode<ElboScaling, ElboArguments> {
 public:
  static constexpr const char* kName = "ElboScaling";
  // The first seven slots have the same indices as the edges. These slots contain the gradients of
  // output, second, third, target and library, then the KL, then beta.
  enum Slot { kGrads, kKl = kGrads + kMaxBuffers, kBeta, kCapacity, kSlots };
  static constexpr size_t kEdges = kCapacity;

  ElboScaling(const std::array<OptionalTensor, kMaxBuffers>& grads, VAE_FUSED_KL_TERM,
              VAE_FUSED_NUMBERS_OF_LOSS, VAE_FUSED_NUMBERS_OF_KL, bool has_hooks)
      : SavingNode(kSlots, reduction, dim, options, beta_value, capacity_value, has_hooks) {
    for (int k = 0; k < kMaxBuffers; ++k) save(kGrads + k, grads[k]);
    save(kKl, kl);
    save(kBeta, beta);
    save(kCapacity, capacity);
  }

  static variable_list backward(const SavedCallWith<ElboArguments>& call,
                                const variable_list& grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                                "vae_fused: grad must be \"backward\", the default, for "
                                "create_graph=True, got \"forward\", "
                                "which has no second derivatives");
    variable_list result(kEdges);
    const OptionalTensor grad_loss = grad_of(grads, 0), grad_nll = grad_of(grads, 1),
                         grad_kl = grad_of(grads, 2);
    const OptionalTensor factor = grad_loss && grad_nll ? OptionalTensor(grad_loss->add(*grad_nll))
                                  : grad_loss           ? grad_loss
                                                        : grad_nll;
    // The buffers must not change if the graph is kept, because another backward pass will read
    // them, or if a hook may have kept a reference to one of them.
    bool is_ours = !call.arguments.has_hooks && factor.has_value() &&
                   !torch::autograd::get_current_graph_task_keep_graph() && !is_lazy(factor) &&
                   !is_lazy(grad_loss) && !is_lazy(grad_kl);
    for (int k = 0; k < kSlots; ++k) {
      const Tensor& saved = call.tensors[k];
      if (!saved.defined()) continue;
      is_ours = is_ours && !is_lazy(saved) && (k >= kMaxBuffers || is_array(saved));
    }
    is_ours ? scale_in_place(call, grad_loss, *factor, grad_kl, result)
            : multiply(call, grad_loss, factor, grad_kl, result);
    return result;
  }

 private:
  static std::array<bool, 2> kl_needs_grad(const SavedCallWith<ElboArguments>& call) {
    const bool has_kl = call.tensors[kKl].defined();
    return {has_kl && call.needs_grad[kKl],
            has_kl && call.tensors[kBeta].defined() && call.needs_grad[kBeta]};
  }

  static void multiply(const SavedCallWith<ElboArguments>& call, const OptionalTensor& grad_loss,
                       const OptionalTensor& factor, const OptionalTensor& grad_kl,
                       variable_list& result) {
    const ElboArguments& a = call.arguments;
    for (int k = 0; k < kMaxBuffers && factor.has_value(); ++k) {
      const Tensor& buffer = call.tensors[kGrads + k];
      if (buffer.defined() && call.needs_grad[k]) result[k] = buffer.mul(*factor);
    }
    const auto needs_grad = kl_needs_grad(call);
    if (!needs_grad[0] && !needs_grad[1]) return;
    const BelowAutograd guard;
    VAE_FUSED_OP(kl_term_backward, "kl_term_backward", "");
    std::tie(result[kKl], result[kBeta]) =
        op(grad_loss, grad_kl, call.tensors[kKl], optional(call.tensors[kBeta]),
           optional(call.tensors[kCapacity]), a.reduction, a.beta_value, a.capacity_or_none(),
           needs_grad);
  }

  static void scale_in_place(const SavedCallWith<ElboArguments>& call,
                             const OptionalTensor& grad_loss, const Tensor& factor,
                             const OptionalTensor& grad_kl, variable_list& result) {
    const ElboArguments& a = call.arguments;
    const at::AutoDispatchBelowADInplaceOrView guard;
    GradientBuffers params;
    params.factor = factor.const_data_ptr();
    params.factor_dtype = dtype_of(factor);
    for (int k = 0; k < kMaxBuffers; ++k) {
      const Tensor& buffer = call.tensors[kGrads + k];
      if (!buffer.defined() || !call.needs_grad[k]) continue;
      params.buffers[k] = {buffer.mutable_data_ptr(), dtype_of(buffer), buffer.numel()};
      result[k] = buffer;
    }
    const auto needs_grad = kl_needs_grad(call);
    std::optional<KlGradients> kl_grads;
    if (needs_grad[0] || needs_grad[1]) {
      const Tensor& kl = call.tensors[kKl];
      const KlNumbers numbers{optional(call.tensors[kBeta]), optional(call.tensors[kCapacity]),
                              a.beta_value, a.capacity_or_none()};
      params.kl = bind_kl(kl, numbers, parse_reduction(a.reduction, std::nullopt, kl.dim()), 1,
                          kl.scalar_type());
      kl_grads.emplace(params.kl, grad_loss, grad_kl, kl, numbers, needs_grad);
      result[kKl] = kl_grads->kl;
      result[kBeta] = kl_grads->beta;
    }
    const c10::DeviceGuard device(factor.device());
    VAE_FUSED_LAUNCH(scale_gradients, params, factor.device());
  }
};

}  // namespace

ElboResults elbo_loss(VAE_FUSED_OBSERVATIONS, VAE_FUSED_KL_TERM, VAE_FUSED_NUMBERS_OF_LOSS,
                      VAE_FUSED_NUMBERS_OF_KL, std::array<bool, 5> grad_mask) {
  refuse_transforms();
  const std::array<OptionalTensor, 7> inputs = {output, second, third, target, library, kl, beta};
  for (const OptionalTensor& t : inputs) {
    if (t) refuse_tangent(*t);
  }
  check_target_grad(target, options);
  const auto needs_grad = [](const OptionalTensor& t) { return t && t->requires_grad(); };
  const bool is_recorded =
      at::GradMode::is_enabled() && std::any_of(inputs.begin(), inputs.end(), needs_grad);
  // A recorded call computes only the gradients that its inputs require. A compiled graph calls the
  // operator without autograd, and receives all gradients in its mask.
  for (size_t k = 0; k < grad_mask.size() && is_recorded; ++k) {
    grad_mask[k] = grad_mask[k] && needs_grad(inputs[k]);
  }
  const bool has_grads = std::any_of(grad_mask.begin(), grad_mask.end(), [](bool b) { return b; });
  const auto out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    VAE_FUSED_OP(elbo_loss, "elbo_loss", "");
    return op(output, second, third, target, library, mask, weight, kl, beta, capacity, reduction,
              dim, options, beta_value, capacity_value, grad_mask);
  }();
  if (!is_recorded) return out;
  const auto& [loss, reconstruction, reduced_kl, rows, g0, g1, g2, g3, g4] = out;
  const auto record = [&](const auto& node) {
    set_output(node, loss);
    set_output(node, reconstruction.value_or(Tensor()),
               reconstruction.has_value() &&
                   std::any_of(inputs.begin(), inputs.begin() + kMaxBuffers, needs_grad));
    set_output(node, reduced_kl.value_or(Tensor()), needs_grad(kl));
    for (int k = 0; k < 1 + kMaxBuffers; ++k) set_output(node, rows, false);
  };
  if (has_grads) {
    const bool has_hooks = at::SavedTensorDefaultHooks::is_enabled() &&
                           at::SavedTensorDefaultHooks::get_hooks().has_value();
    const auto node = make_node<ElboScaling>(
        std::array<OptionalTensor, kMaxBuffers>{g0, g1, g2, g3, g4}, kl, beta, capacity, reduction,
        dim, options, beta_value, capacity_value, has_hooks);
    node->set_next_edges(
        torch::autograd::collect_next_edges(output, second, third, target, library, kl, beta));
    record(node);
  } else {
    record(make_node<ElboBackward>(output, second, third, target, library, mask, weight, kl, beta,
                                   capacity, reduction, dim, options, beta_value, capacity_value,
                                   rows));
  }
  return out;
}

}  // namespace vae_fused::autograd
