#include "torch/likelihood/gradients.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "torch/check.h"
#include "torch/launch.h"

namespace vae_fused {
namespace {

int64_t shared_partials_of(const NllBackwardParams& params) {
#ifdef VAE_FUSED_WITH_CUDA
  return cuda::partials_of(params);
#else
  (void)params;
  return 0;
#endif
}

int64_t value_partials_of(const NllBackwardParams& params) {
#ifdef VAE_FUSED_WITH_CUDA
  return params.nll.data ? cuda::value_partials_of(params) : 0;
#else
  (void)params;
  return 0;
#endif
}

// The gradient of a parameter that the call may have broadcast. The kernel either sums it into
// `sum`, which has the shape of the parameter, or writes it to `full`, which has the shape of the
// first output.
struct ParameterGrad {
  Tensor parameter;  // undefined: no gradient is required
  Tensor full, sum;

  ParameterGrad(bool required, const OptionalTensor& parameter, const Tensor& output) {
    if (!required || !parameter.has_value()) return;
    this->parameter = *parameter;
    const bool is_bindable = output.dim() <= kMaxDims;  // a copy of `sum` would lose its strides
    if (parameter->sizes() == output.sizes() || !is_bindable) {
      full = with_huge_pages(at::empty(output.sizes(), parameter->options()));
    } else {
      sum = at::zeros(parameter->sizes(), parameter->options().dtype(at::kDouble));
    }
  }

  void add_to(CallTensors& tensors, const char* full_name, const char* sum_name,
              const Tensor& output) const {
    tensors.add(full_name, full);
    tensors.add(sum_name, sum.defined() ? sum.expand(output.sizes()) : Tensor());
  }

  // Whether the kernel can sum the gradient, either along each row or over all rows.
  bool is_summable(const Space& space, const Operand& operand) const {
    const int inner = space.ndim - 1;
    if (!operand.data || operand.stride[inner] == 0) return true;
    return std::all_of(operand.stride, operand.stride + inner, [](int64_t s) { return s == 0; });
  }

  void write_in_full(const Tensor& output) {
    if (!sum.defined()) return;
    sum = Tensor();
    full = with_huge_pages(at::empty(output.sizes(), parameter.options()));
  }

  Tensor result() const {
    if (!parameter.defined()) return Tensor();
    return sum.defined() ? sum.to(parameter.scalar_type()) : full.sum_to_size(parameter.sizes());
  }
};

// Returns the gradient of the reduced loss, expanded to the shape of the output.
Tensor expanded(const Tensor& grad, const Reduction& reduced, const Tensor& output) {
  Tensor full = grad;
  for (int64_t d = 0; d < output.dim() && grad.dim() > 0; ++d) {
    if (reduced.summed[d]) full = full.unsqueeze(d);
  }
  return full.expand(output.sizes());
}

Gradients empty_gradients(VAE_FUSED_OBSERVATIONS, std::array<bool, 5> output_mask) {
  const auto like = [&](bool required, const OptionalTensor& t) {
    if (!required || !t.has_value()) return Tensor();
    const Tensor grad = at::empty_like(*t);
    if (!grad.is_meta()) grad.zero_();
    return grad;
  };
  return {like(output_mask[0], output), like(output_mask[1], second), like(output_mask[2], third),
          like(output_mask[3], target), like(output_mask[4], library)};
}

}  // namespace

Gradients compute_gradients(const OptionalTensor& grad, const ObservedTensors& call,
                            VAE_FUSED_OBSERVATIONS, const Tensor& rows, const Reduction& reduced,
                            std::array<bool, 5> output_mask, NllBackwardParams params) {
  if (output.is_meta() || output.numel() == 0) {
    return empty_gradients(output, second, third, target, library, mask, weight, output_mask);
  }
  // The kernel writes all gradients in the dtype of the outputs, which has too few digits for the
  // gradient of a wider target. Such calls are rare, so the outputs are converted to float.
  const bool is_half = output.scalar_type() == at::kHalf || output.scalar_type() == at::kBFloat16;
  if (output_mask[3] && is_half && target.scalar_type() != output.scalar_type()) {
    const auto wide = [](const OptionalTensor& t) {
      return t.has_value() ? OptionalTensor(t->to(at::kFloat)) : std::nullopt;
    };
    const Tensor wide_output = output.to(at::kFloat);
    const OptionalTensor wide_second = wide(second), wide_third = wide(third);
    const ObservedTensors wide_call(wide_output, wide_second, wide_third, target, library, mask,
                                    weight, call.option_list);
    Gradients grads =
        compute_gradients(grad, wide_call, wide_output, wide_second, wide_third, target, library,
                          mask, weight, rows, reduced, output_mask, params);
    for (int k = 0; k < 3; ++k) {
      if (grads[k].defined()) grads[k] = grads[k].to(output.scalar_type());
    }
    return grads;
  }

  params.dtype = dtype_of(output);
  params.factor = reduced.factor(output);
  call.describe(params.observations);
  CallTensors inputs = call.bindable();
  add_rows(inputs, call, rows);
  if (grad.has_value()) inputs.add("grad", expanded(*grad, reduced, output));

  Tensor dot, grad_library;
  if ((call.options.is_softmax() && output_mask[0]) || (output_mask[4] && library.has_value())) {
    dot = at::empty_symint(call.row_sizes(), call.arithmetic_options());
    CallTensors tensors = inputs;
    NllBackwardParams dot_params = params;
    dot_params.nll = {};
    dot_params.kl = {};
    dot_params.space = tensors.bind(dot_params, output, last_dim(output));
    dot_params.dot.data = dot.mutable_data_ptr();
    const Tensor partials =
        partials_for(output, parts_of(dot_params.space), dot_params.dot.partials);
    VAE_FUSED_LAUNCH(softmax_dot, dot_params, output.device());
    if (output_mask[4] && library.has_value()) grad_library = dot.sum_to_size(library->sizes());
  }
  const Tensor grad_output = output_mask[0] ? with_huge_pages(at::empty_like(output)) : Tensor();
  Tensor grad_target;
  if (output_mask[3]) grad_target = with_huge_pages(at::empty(output.sizes(), output.options()));
  ParameterGrad grad_second(output_mask[1], second, output),
      grad_third(output_mask[2], third, output);
  if (!grad_output.defined() && !grad_target.defined() && !grad_second.parameter.defined() &&
      !grad_third.parameter.defined() && !params.nll.data) {
    if (params.kl.has_gradients()) VAE_FUSED_LAUNCH(kl_backward, params, output.device());
    return {grad_output, Tensor(), Tensor(), grad_target, grad_library};
  }
  if (call.options.is_softmax() && dot.defined()) {
    inputs.add("row_dot", dot.expand(output.sizes()));
    if (call.library.defined()) {
      const Tensor finite = call.library.masked_fill(call.library.isinf(), 0.0);
      inputs.add("library", finite.expand(output.sizes()));
    }
  }
  inputs.add("grad_output", grad_output);
  inputs.add("grad_target", grad_target);
  const auto bind = [&] {
    CallTensors tensors = inputs;
    grad_second.add_to(tensors, "grad_second", "sum_second", output);
    grad_third.add_to(tensors, "grad_third", "sum_third", output);
    params.space = tensors.bind(params, output, {});
    return tensors;
  };
  CallTensors tensors = bind();
  if (!grad_second.is_summable(params.space, params.sum_second) ||
      !grad_third.is_summable(params.space, params.sum_third)) {
    grad_second.write_in_full(output);
    grad_third.write_in_full(output);
    params.sum_second = params.sum_third = Operand{};
    tensors = bind();
  }
  const Tensor partials = partials_for(output, shared_partials_of(params), params.partials);
  const Tensor values = partials_for(output, value_partials_of(params), params.nll.partials);
  VAE_FUSED_LAUNCH(nll_backward, params, output.device());
  tensors.copy_back();
  if (grad_target.defined()) {
    grad_target = grad_target.sum_to_size(target.sizes()).to(target.scalar_type());
  }
  return {grad_output, grad_second.result(), grad_third.result(), grad_target, grad_library};
}

}  // namespace vae_fused
