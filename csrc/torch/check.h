// What keeps the kernels within memory, whoever calls; the messages that teach are in
// vae_fused/_checks.py, which has checked the same things before.
#pragma once

#include "params.h"
#include "torch/ops.h"

namespace vae_fused {

DType dtype_of(const Tensor& t);

void check_tensor(const Tensor& t, const char* name, c10::SymIntArrayRef shape,
                  at::ScalarType dtype, const Tensor& mu);
void check_like(const Tensor& t, const char* name, const Tensor& like);
void check_key(const Tensor& key, const Tensor& mu);

// Where the noise comes from: explicit, a key, or a key to be reserved. Exactly one.
struct Noise {
  Tensor eps;
  Tensor key;
  bool reserve = false;
  OptionalGenerator generator;

  static Noise given(const OptionalTensor& eps, const OptionalTensor& key);
  static Noise reserved(const OptionalGenerator& generator);

  void check(const Tensor& like) const;  // like z, or its gradient
};

// The tensors of a call's Gaussians, beside mu, and its options. Undefined: absent.
struct Tensors {
  Tensor raw, prior_mean, prior_raw, mask;
  OptionList options;

  Tensors(const OptionalTensor& raw, const OptionalTensor& prior_mean,
          const OptionalTensor& prior_raw, const OptionalTensor& mask, OptionList options)
      : raw(raw.value_or(Tensor())),
        prior_mean(prior_mean.value_or(Tensor())),
        prior_raw(prior_raw.value_or(Tensor())),
        mask(mask.value_or(Tensor())),
        options(options) {}

  void check(const Tensor& mu) const;
};

}  // namespace vae_fused
