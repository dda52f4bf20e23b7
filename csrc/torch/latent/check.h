// What the operators of the latent family take beside mu, checked.
#pragma once

#include "params/latent.h"
#include "torch/check.h"
#include "torch/latent/options.h"
#include "torch/operands.h"

namespace vae_fused {

// Where the noise comes from: explicit, a key, or a key to be reserved. Exactly one.
struct Noise {
  Tensor eps;
  Tensor key;
  bool reserve = false;
  OptionalGenerator generator;

  static Noise given(const OptionalTensor& eps, const OptionalTensor& key);
  static Noise reserved(const OptionalGenerator& generator);

  // `samples`: the shape of the samples, in front of that of mu.
  void check(const Tensor& mu, c10::SymIntArrayRef samples) const;
};

// The tensors of a call's Gaussians, beside mu, and its options. Undefined: absent.
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

  // The same tensors, expanded to a shape that has the dimensions of samples in front.
  Tensors expanded(c10::SymIntArrayRef shape) const;

  // These and mu, to be bound.
  CallTensors bindable(const Tensor& mu) const;
};

// How many samples z, or its gradient, has of the elements of mu.
int64_t samples_of(const Tensor& z, const Tensor& mu);

}  // namespace vae_fused
