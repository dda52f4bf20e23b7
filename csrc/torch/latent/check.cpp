#include "torch/latent/check.h"

namespace vae_fused {

Noise Noise::given(const OptionalTensor& eps, const OptionalTensor& key) {
  TORCH_CHECK_VALUE(eps.has_value() != key.has_value(),
                    "vae_fused: either eps or key must be given, got ", eps ? "both" : "none");
  Noise noise;
  if (eps) noise.eps = *eps;
  if (key) noise.key = key->contiguous();
  return noise;
}

Noise Noise::reserved(const OptionalGenerator& generator) {
  Noise noise;
  noise.reserve = true;
  noise.generator = generator;
  return noise;
}

void Noise::check(const Tensor& mu, c10::SymIntArrayRef samples) const {
  if (eps.defined()) {
    c10::SymDimVector shape(samples);
    shape.append(mu.sym_sizes().begin(), mu.sym_sizes().end());
    check_tensor(eps, "eps", shape, mu.scalar_type(), mu);
  }
  if (key.defined()) check_key(key, mu);
}

void Tensors::check(const Tensor& mu) const {
  if (raw.defined()) check_like(raw, "raw", mu);
  if (prior_mean.defined()) check_like(prior_mean, "prior_mean", mu);
  if (prior_raw.defined()) check_like(prior_raw, "prior_raw", mu);
  if (mask.defined()) check_tensor(mask, "mask", mu.sym_sizes(), at::kBool, mu);
  options.check(mu);
}

Tensors Tensors::expanded(c10::SymIntArrayRef shape) const {
  Tensors result = *this;
  for (Tensor* t : {&result.raw, &result.prior_mean, &result.prior_raw, &result.mask}) {
    if (t->defined()) *t = t->expand_symint(shape);
  }
  return result;
}

CallTensors Tensors::bindable(const Tensor& mu) const {
  CallTensors tensors;
  tensors.add("mu", mu);
  tensors.add("raw", raw);
  tensors.add("prior_mean", prior_mean);
  tensors.add("prior_raw", prior_raw);
  tensors.add("mask", mask);
  return tensors;
}

int64_t samples_of(const Tensor& z, const Tensor& mu) {
  return z.defined() ? z.numel() / mu.numel() : 1;
}

}  // namespace vae_fused
