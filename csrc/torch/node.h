// The code that the autograd nodes of all families share: tensors saved in slots, the other
// arguments of a call, and edges to and from the graph.
//
// The nodes derive from Node. torch::autograd::Function would add 5 us to a forward and backward
// pass, because it stores arguments in a dictionary keyed by strings and demangles the name of its
// class in every backward pass.
#pragma once

#include <ATen/core/List.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "torch/op_handle.h"
#include "torch/tensor.h"

namespace vae_fused::autograd {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::PackedArgs;
using torch::dynamo::autograd::SwapSavedVariables;

// Returns a gradient in the layout that kernels read. For example, the gradient that an embedding
// computes for z is sparse.
inline OptionalTensor dense(const Tensor& grad) {
  return optional(grad.defined() && grad.layout() != at::kStrided ? grad.to_dense() : grad);
}

// Whether any of these tensors is present and requires a gradient.
template <typename... Tensors>
bool any_requires_grad(const Tensors&... t) {
  return ((t.has_value() && t->requires_grad()) || ...);
}

// The next two functions raise under torch.func and in forward mode, respectively. The Python
// functions support both: see vae_fused/_native/autograd.py.
inline void refuse_transforms() {
  using c10::DispatchKey;
  TORCH_CHECK_NOT_IMPLEMENTED(
      !c10::impl::tls_is_dispatch_key_included(DispatchKey::FuncTorchDynamicLayerBackMode),
      "vae_fused: torch.func does not transform the operators in torch.ops.vae_fused; call the "
      "function of the same name in vae_fused");
}

inline void refuse_tangent(const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !t._fw_grad(/*level=*/0).defined(),
      "vae_fused: jvp is not implemented for the operators in torch.ops.vae_fused; call the "
      "function of the same name in vae_fused");
}

// While this object exists, the operators that a backward pass calls are dispatched below autograd,
// unless the pass is itself recorded.
class BelowAutograd {
 public:
  BelowAutograd() {
    if (!at::GradMode::is_enabled()) guard_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard_;
};

// The non-tensor arguments of a call, passed from forward to backward.
struct SavedArguments {
  std::string reduction;
  std::optional<std::vector<int64_t>> dim;
  std::optional<std::vector<double>> options;
  int64_t packed_dim = 0;
  bool has_z = true, has_kl = true;  // the outputs, in this order

  SavedArguments() = default;
  SavedArguments(std::string_view reduction, at::OptionalIntArrayRef dim,
                 std::optional<c10::ArrayRef<double>> options, int64_t packed_dim = 0,
                 bool has_z = true, bool has_kl = true)
      : reduction(reduction), packed_dim(packed_dim), has_z(has_z), has_kl(has_kl) {
    if (dim.has_value()) this->dim.emplace(dim->begin(), dim->end());
    if (options.has_value()) this->options.emplace(options->begin(), options->end());
  }

  at::OptionalIntArrayRef dim_ref() const {
    return dim ? at::OptionalIntArrayRef(*dim) : at::OptionalIntArrayRef();
  }
  std::optional<c10::ArrayRef<double>> options_ref() const {
    return options ? std::optional(c10::ArrayRef<double>(*options)) : std::nullopt;
  }

  template <typename Visit>
  void for_each(const Visit& visit) {
    for_each(*this, visit);
  }
  template <typename Visit>
  void for_each(const Visit& visit) const {
    for_each(*this, visit);
  }

 private:
  template <typename Self, typename Visit>
  static void for_each(Self& a, const Visit& visit) {
    visit(a.reduction), visit(a.dim), visit(a.options), visit(a.packed_dim);
    visit(a.has_z), visit(a.has_kl);
  }
};

// The inputs of a backward pass, in addition to the gradients of the call's outputs.
template <typename Arguments>
struct SavedCallWith {
  variable_list tensors;         // by slot
  std::vector<bool> needs_grad;  // which edges need a gradient
  const Arguments& arguments;
};
using SavedCall = SavedCallWith<SavedArguments>;

// A node that saves tensors in slots. `Derived` defines the slots and has a static function
// `variable_list backward(const SavedCallWith<Arguments>&, const variable_list& grads)`.
template <typename Derived, typename Arguments = SavedArguments>
class SavingNode : public Node {
 public:
  template <typename... CallArguments>
  explicit SavingNode(size_t slots, CallArguments&&... call_arguments)
      : arguments_(std::forward<CallArguments>(call_arguments)...) {
    saved_.resize(slots);
  }

  void save(size_t slot, const Tensor& t) {
    if (t.defined()) saved_[slot] = SavedVariable(t, /*is_output=*/false);
  }
  void save(size_t slot, const OptionalTensor& t) {
    if (t) save(slot, *t);
  }

  std::string name() const override { return Derived::kName; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);  // as in torch's nodes with saved tensors
    return Derived::backward(unpack(), grads);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& s : saved_) s.reset_data();
  }

  // Compiled autograd identifies a node by its saved values. It calls the node's backward as a
  // function of these values and of the gradients.
  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(c10::ArrayRef<SavedVariable>(saved_), /*is_output=*/false);
    arguments_.for_each([&](const auto& value) { args.collect(value); });
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    for (SavedVariable& s : saved_) swap.before(s);
    const std::vector<c10::IValue> packed = pack(unpack());
    for (SavedVariable& s : saved_) swap.after(s);
    std::vector<at::TypePtr> types;
    for (const c10::IValue& value : packed) {
      types.push_back(value.isTensor() ? at::TensorType::get() : value.type());
    }
    const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
    const std::string function = compiler->bind_function(
        swap.get_py_compiler(), name(), backward_of_packed, types, /*is_custom_function=*/true,
        /*is_traceable=*/false);
    using Metadata = std::vector<std::optional<torch::autograd::InputMetadata>>;
    return compiler->call_function(swap.get_py_compiler(), "apply_functional", function, grads,
                                   packed,
                                   torch::dynamo::autograd::IValuePacker<Metadata>::pack(
                                       torch::dynamo::autograd::get_input_metadata(next_edges())));
  }

 private:
  using Call = SavedCallWith<Arguments>;

  Call unpack() const {
    Call call{{}, {}, arguments_};
    call.tensors.reserve(saved_.size());
    for (const SavedVariable& s : saved_) call.tensors.push_back(s.unpack());
    call.needs_grad.reserve(num_outputs());
    for (uint32_t k = 0; k < num_outputs(); ++k) {
      call.needs_grad.push_back(task_should_compute_output(k));
    }
    return call;
  }

  static std::vector<c10::IValue> pack(const Call& call) {
    PackedArgs packed;
    packed.pack(call.tensors);
    packed.pack(call.needs_grad);
    call.arguments.for_each([&](const auto& value) { packed.pack(value); });
    return std::move(packed).vec();
  }

  static variable_list backward_of_packed(const variable_list& grads,
                                          const std::vector<c10::IValue>& values) {
    PackedArgs packed(values);
    auto tensors = packed.unpack<variable_list>();
    auto needs_grad = packed.unpack<std::vector<bool>>();
    Arguments arguments;
    arguments.for_each(
        [&](auto& value) { value = packed.unpack<std::remove_reference_t<decltype(value)>>(); });
    return Derived::backward({std::move(tensors), std::move(needs_grad), arguments}, grads);
  }

  c10::SmallVector<SavedVariable, 8> saved_;
  Arguments arguments_;
};

// Creates a node. Up to version 2.12, torch owns nodes through a shared_ptr, and in later versions
// through an intrusive_ptr.
template <typename T, typename... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_same_v<decltype(torch::autograd::Edge::function), std::shared_ptr<Node>>) {
    return std::shared_ptr<T>(new T(std::forward<Args>(args)...),
                              [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  }
}

// Makes `t` the next output of the node's call. An output that depends on no input that requires a
// gradient must not be differentiable.
template <typename Pointer>
void set_output(const Pointer& node, const Tensor& t, bool is_differentiable = true) {
  if (is_differentiable) {
    torch::autograd::set_history(t, node);
  } else {
    node->add_input_metadata(Node::undefined_input());
  }
}

// Whether autograd must record a call with this argument.
inline bool is_recorded(const Tensor& t) {
  if (!t.defined()) return false;
  return (at::GradMode::is_enabled() && t.requires_grad()) || t._fw_grad(/*level=*/0).defined();
}
inline bool is_recorded(const OptionalTensor& t) { return t.has_value() && is_recorded(*t); }
inline bool is_recorded(at::TensorList list) {
  return std::any_of(list.begin(), list.end(), [](const Tensor& t) { return is_recorded(t); });
}
inline bool is_recorded(const c10::List<OptionalTensor>& list) {
  return std::any_of(list.begin(), list.end(),
                     [](const OptionalTensor& t) { return is_recorded(t); });
}
template <typename T>
bool is_recorded(const T&) {
  return false;
}

// A backward operator's implementation for the Autograd dispatch key. If autograd must record the
// call, this implementation calls the overload `recorded`, which is implemented in Python: see
// vae_fused/_native/registration.py.
template <const char* name, typename Signature>
struct Backward;

template <const char* name, typename Result, typename... Args>
struct Backward<name, Result(Args...)> {
  static Result call(Args... args) {
    static const Op<Result(Args...)> op(name, ""), recorded(name, "recorded");
    if ((is_recorded(args) || ...)) {
      refuse_transforms();
      return recorded(std::forward<Args>(args)...);
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op(std::forward<Args>(args)...);
  }
};

}  // namespace vae_fused::autograd
