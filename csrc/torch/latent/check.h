// The arguments of the latent operators other than mu, and the checks of these arguments.
#pragma once

#include "params/latent.h"
#include "torch/check.h"
#include "torch/latent/options.h"
#include "torch/operands.h"

namespace vae_fused {

// The source of the noise: explicit noise, a key, or a key that is yet to be reserved. Exactly one
// of these is set.
struct Noise {
  Tensor eps;
  Tensor key;
  bool reserve = false;
  OptionalGenerator generator;

  static Noise given(const OptionalTensor& eps, const OptionalTensor& key);
  static Noise reserved(const OptionalGenerator& generator);

  // `samples` is the shape of the samples, which precedes the shape of mu.
  void check(const Tensor& mu, c10::SymIntArrayRef samples) const;
};

// The tensors of a call's Gaussians other than mu, and the options of the call. Absent tensors are
// undefined.
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

  // Returns the same tensors, expanded to a shape that begins with the sample dimensions.
  Tensors expanded(c10::SymIntArrayRef shape) const;

  // Returns these tensors and mu, ready to be bound.
  CallTensors bindable(const Tensor& mu) const;
};

// Returns the number of samples that z, or its gradient, has for each element of mu.
int64_t samples_of(const Tensor& z, const Tensor& mu);

}  // namespace vae_fused
