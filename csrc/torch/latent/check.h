// The arguments of the latent family's operators beside mu, and their checks.
#pragma once

#include "params/latent.h"
#include "torch/check.h"
#include "torch/latent/options.h"
#include "torch/operands.h"

namespace vae_fused {

// The origin of the noise: explicit noise, a key, or a key that is to be reserved. Exactly one is
// set.
struct Noise {
  Tensor eps;
  Tensor key;
  bool reserve = false;
  OptionalGenerator generator;

  static Noise given(const OptionalTensor& eps, const OptionalTensor& key);
  static Noise reserved(const OptionalGenerator& generator);

  // `samples` is the shape of the samples, which precedes that of mu.
  void check(const Tensor& mu, c10::SymIntArrayRef samples) const;
};

// The tensors of a call's Gaussians beside mu, and its options. Absent tensors are undefined.
struct Tensors {
  Tensor raw, prior_mean, prior_raw, mask;
  GivenOptions options;

  Tensors(const OptionalTensor& raw, const OptionalTensor& prior_mean,
          const OptionalTensor& prior_raw, const OptionalTensor& mask, const GivenOptions& options)
      : raw(raw.value_or(Tensor())),
        prior_mean(prior_mean.value_or(Tensor())),
        prior_raw(prior_raw.value_or(Tensor())),
        mask(mask.value_or(Tensor())),
        options(options) {}

  void check(const Tensor& mu) const;

  // The same tensors, expanded to a shape with the dimensions of samples in front.
  Tensors expanded(c10::SymIntArrayRef shape) const;

  // These tensors and mu, ready to be bound.
  CallTensors bindable(const Tensor& mu) const;
};

// The number of samples that z, or its gradient, has for each element of mu.
int64_t samples_of(const Tensor& z, const Tensor& mu);

}  // namespace vae_fused
