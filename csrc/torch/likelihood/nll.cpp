// The operators of nll, which check their arguments, allocate results, bind tensors and launch
// kernels.
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "torch/check.h"
#include "torch/launch.h"
#include "torch/likelihood/gradients.h"

namespace vae_fused {

void compute_nll(const ObservedTensors& call, const Tensor& rows, const Reduction& reduced,
                 const Tensor& result, NllParams& params) {
  const Tensor& output = call.output;
  params.dtype = dtype_of(output);
  params.nll.factor = reduced.factor(output);
  if (call.options.is_softmax()) compute_rows(call, rows);
  call.describe(params.observations);
  CallTensors tensors = call.bindable();
  add_rows(tensors, call, rows);
  params.space = tensors.bind(params, output, reduced.summed);
  params.nll.data = result.mutable_data_ptr();
  Tensor partials;
  if (params.space.tiles_per_row > 1) {
    partials = at::empty({params.space.tiles}, output.options().dtype(at::kDouble));
    params.nll.partials = partials.mutable_data_ptr<double>();
  }
  VAE_FUSED_LAUNCH(nll, params, output.device());
}

std::tuple<Tensor, Tensor> nll(VAE_FUSED_OBSERVATIONS, VAE_FUSED_NUMBERS_OF_LOSS) {
  const ObservedTensors call(output, second, third, target, library, mask, weight, options);
  const Reduction reduced = parse_reduction(reduction, dim, output.dim());
  const Tensor result = at::empty_symint(reduced.shape(output), call.arithmetic_options());
  const Tensor rows = at::empty_symint(call.rows_sizes(), call.arithmetic_options());
  if (output.is_meta()) return {result, rows};
  const c10::DeviceGuard guard(output.device());
  if (output.numel() == 0) {  // a sum is 0 and a mean is NaN, as in torch
    result.fill_(0.0 * reduced.factor(output));
    return {result, rows};
  }
  NllParams params;
  compute_nll(call, rows, reduced, result, params);
  return {result, rows};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nll_backward(const Tensor& grad,
                                                                VAE_FUSED_OBSERVATIONS,
                                                                const Tensor& rows,
                                                                VAE_FUSED_NUMBERS_OF_LOSS,
                                                                std::array<bool, 5> output_mask) {
  const ObservedTensors call(output, second, third, target, library, mask, weight, options);
  const Reduction reduced = parse_reduction(reduction, dim, output.dim());
  check_tensor(grad, "grad", reduced.shape(output), arithmetic_dtype(output), output);
  const c10::DeviceGuard guard(output.device());
  return std::tuple_cat(compute_gradients(grad, call, output, second, third, target, library, mask,
                                          weight, rows, reduced, output_mask, {}));
}

}  // namespace vae_fused
