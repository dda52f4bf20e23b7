#include "torch/likelihood/observations.h"

#include <ATen/ops/empty.h>

#include "torch/check.h"
#include "torch/launch.h"

namespace vae_fused {
namespace {

TargetType target_type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return TargetType::kFloat32;
    case at::kDouble:
      return TargetType::kFloat64;
    case at::kHalf:
      return TargetType::kFloat16;
    case at::kBFloat16:
      return TargetType::kBFloat16;
    case at::kByte:
      return TargetType::kUInt8;
    case at::kInt:
      return TargetType::kInt32;
    case at::kLong:
      return TargetType::kInt64;
    default:
      TORCH_CHECK_TYPE(false,
                       "vae_fused: target must be float32, float64, float16, bfloat16, uint8, "
                       "int32 or int64, got ",
                       t.scalar_type());
  }
}

}  // namespace

ObservedTensors::ObservedTensors(VAE_FUSED_OBSERVATIONS, OptionList options)
    : output(output),
      second(expanded(second)),
      third(expanded(third)),
      target(expanded(target)),
      mask(expanded(mask)),
      weight(expanded(weight)),
      library(rows_of(library)),
      options(options),
      option_list(options) {
  const at::ScalarType wide = arithmetic_dtype(output);
  const size_t outputs = 1 + this->second.defined() + this->third.defined();
  TORCH_CHECK_VALUE(this->options.accepts(outputs),
                    "vae_fused: output must be as many tensors as the likelihood of kind ",
                    static_cast<int>(this->options.kind()), " has, got ", outputs);
  for (const auto& [name, t] : {std::pair("second", this->second), {"third", this->third}}) {
    if (t.defined()) check_like(t, name, output);
  }
  if (this->mask.defined()) check_tensor(this->mask, "mask", output.sym_sizes(), at::kBool, output);
  if (this->weight.defined()) {
    check_tensor(this->weight, "weight", output.sym_sizes(), wide, output);
  }
  if (this->library.defined()) {
    check_tensor(this->library, "library", row_sizes(), wide, output);
  }
  TORCH_CHECK_VALUE(!this->options.is_softmax() || output.dim() > 0,
                    "vae_fused: output must have a last dimension for the softmax, got shape ",
                    output.sym_sizes());
  TORCH_CHECK(target.device() == output.device(),
              "vae_fused: target must be on the device of output, ", output.device(), ", got ",
              target.device());
}

c10::SymDimVector ObservedTensors::row_sizes() const {
  c10::SymDimVector sizes(output.sym_sizes());
  if (!sizes.empty()) sizes.back() = 1;
  return sizes;
}

c10::SymDimVector ObservedTensors::rows_sizes() const {
  if (!options.is_softmax()) return {0};
  c10::SymDimVector sizes = row_sizes();
  sizes.insert(sizes.begin(), 2);
  return sizes;
}

CallTensors ObservedTensors::bindable() const {
  CallTensors tensors;
  tensors.add("output", output);
  tensors.add("second", second);
  tensors.add("third", third);
  tensors.add("target", target);
  tensors.add("mask", mask);
  tensors.add("weight", weight);
  return tensors;
}

void ObservedTensors::describe(Observations& observations) const {
  observations.kind = options.kind();
  observations.options = options.parsed(second.defined());
  observations.target_type = target_type_of(target);
}

at::TensorOptions ObservedTensors::arithmetic_options() const {
  return output.options().dtype(arithmetic_dtype(output));
}

Tensor ObservedTensors::expanded(const Tensor& t) const {
  if (t.sym_sizes() == output.sym_sizes()) return t;  // expanding it would take 0.5 us
  return t.expand_symint(output.sym_sizes());
}
Tensor ObservedTensors::expanded(const OptionalTensor& t) const {
  return t.has_value() ? expanded(*t) : Tensor();
}
Tensor ObservedTensors::rows_of(const OptionalTensor& t) const {
  return t.has_value() ? t->expand_symint(row_sizes()) : Tensor();
}

DimSet last_dim(const Tensor& t) { return DimSet{}.set(t.dim() - 1); }

Tensor partials_for(const Tensor& output, int64_t count, double*& data) {
  if (!output.is_cuda() || count == 0) return Tensor();
  const Tensor partials = at::empty({count}, output.options().dtype(at::kDouble));
  data = partials.mutable_data_ptr<double>();
  return partials;
}

int64_t parts_of(const Space& space) { return space.tiles_per_row > 1 ? space.tiles : 0; }

void compute_rows(const ObservedTensors& call, const Tensor& rows) {
  SoftmaxParams params;
  params.dtype = dtype_of(call.output);
  CallTensors tensors;
  tensors.add("logits", call.output);
  tensors.add("mask", call.mask);
  params.space = tensors.bind(params, call.output, last_dim(call.output));
  const Tensor library = call.library.defined() ? call.library.contiguous() : Tensor();
  if (library.defined()) params.library = library.const_data_ptr();
  params.row_max = rows[0].mutable_data_ptr();
  params.row_shift = rows[1].mutable_data_ptr();
  const Tensor partials = partials_for(call.output, 2 * parts_of(params.space), params.partials);
  VAE_FUSED_LAUNCH(softmax_rows, params, call.output.device());
}

void add_rows(CallTensors& tensors, const ObservedTensors& call, const Tensor& rows) {
  const auto along_rows = [&](const Tensor& t) { return t.expand(call.output.sizes()); };
  if (call.options.is_softmax()) {
    tensors.add("row_max", along_rows(rows[0]));
    tensors.add("row_shift", along_rows(rows[1]));
  } else if (call.library.defined()) {
    tensors.add("row_shift", along_rows(call.library));
  }
}

}  // namespace vae_fused
