// The interface between csrc/torch and the kernels of the latent family: plain structs, and an
// entry point for each device and direction. The interface includes neither torch nor CUDA, so the
// kernels can be built and tested without either.
#pragma once

#include "iteration/key.h"
#include "iteration/rows.h"
#include "iteration/space.h"
#include "math/latent/options.h"
#include "params/device.h"

namespace vae_fused {

// The Gaussians of a call.
struct Gaussians {
  math::LatentOptions<double> options;
  Operand mu;
  Operand raw;                    // the raw scale, which determines sigma; absent: sigma = 1
  Operand prior_mean, prior_raw;  // absent: the values in `options` apply
  Operand mask;                   // bytes, 0 or 1; absent: 1 everywhere
  int64_t samples = 1;            // sample s of element i uses normal s * numel + i of the stream
};

// Whether the kernels for math::DefaultOptions can process these Gaussians. The mask is not
// checked.
inline bool has_default_options(const Gaussians& gaussians) {
  return gaussians.raw.data && !gaussians.prior_mean.data && !gaussians.prior_raw.data &&
         gaussians.samples == 1 && math::is_default(gaussians.options);
}

// z = mu + T sigma eps and the KL of each row. Either may be absent. If the KL is estimated from
// samples (LatentOptions::at_sample), `samples` is 1, because the samples are then elements of the
// space.
struct ForwardParams {
  DType dtype = DType::kFloat32;
  Space space;
  RngKey key;
  Gaussians gaussians;
  SampledOperand eps;           // explicit noise instead of the key
  SampledOperand z;             // absent: no sample
  RowSums kl;                   // partials hold twice the KL
  uint64_t* key_out = nullptr;  // [2], the key that was used; absent: not required
};

// Gradients of `sum(grad_z * z) + sum(grad_kl * kl)`. If the KL is estimated from samples, grad_kl
// contains the rows of each sample, one sample after the other.
struct BackwardParams {
  DType dtype = DType::kFloat32;
  Space space;
  RngKey key;
  Gaussians gaussians;
  SampledOperand eps;
  SampledOperand grad_z;  // absent: z has no gradient
  RowGrads grad_kl;
  Operand grad_mu, grad_raw, grad_prior_mean, grad_prior_raw;  // absent: not required
  SampledOperand grad_eps;
};

inline math::LatentOptions<double>& options_of(ForwardParams& p) { return p.gaussians.options; }
inline math::LatentOptions<double>& options_of(BackwardParams& p) { return p.gaussians.options; }

// A call with pointers to those of its options whose values are on the device. The kernels for
// default options do not take these pointers.
template <typename Params>
struct WithScalars : Params {
  math::DeviceScalars scalars;

  WithScalars() = default;
  WithScalars(const Params& params) : Params(params) {}
};

// See OperandRef.
template <typename Visit>
void for_each_operand(Gaussians& gaussians, DType dtype, const Visit& visit) {
  const int bytes = size_of(dtype);
  visit(OperandRef("mu", gaussians.mu, bytes, false));
  visit(OperandRef("raw", gaussians.raw, bytes, false));
  visit(OperandRef("prior_mean", gaussians.prior_mean, bytes, false));
  visit(OperandRef("prior_raw", gaussians.prior_raw, bytes, false));
  visit(OperandRef("mask", gaussians.mask, 1, false));
}

template <typename Visit>
void for_each_operand(ForwardParams& p, const Visit& visit) {
  const int bytes = size_of(p.dtype);
  for_each_operand(p.gaussians, p.dtype, visit);
  visit(OperandRef("eps", p.eps, bytes, false));
  visit(OperandRef("z", p.z, bytes, true));
}

template <typename Visit>
void for_each_operand(BackwardParams& p, const Visit& visit) {
  const int bytes = size_of(p.dtype);
  for_each_operand(p.gaussians, p.dtype, visit);
  visit(OperandRef("eps", p.eps, bytes, false));
  visit(OperandRef("grad_z", p.grad_z, bytes, false));
  visit(OperandRef("grad_mu", p.grad_mu, bytes, true));
  visit(OperandRef("grad_raw", p.grad_raw, bytes, true));
  visit(OperandRef("grad_prior_mean", p.grad_prior_mean, bytes, true));
  visit(OperandRef("grad_prior_raw", p.grad_prior_raw, bytes, true));
  visit(OperandRef("grad_eps", p.grad_eps, bytes, true));
}

namespace cpu {

void forward(const WithScalars<ForwardParams>& params, ParallelFor parallel_for);
void backward(const WithScalars<BackwardParams>& params, ParallelFor parallel_for);

}  // namespace cpu

namespace cuda {

// `stream` is a cudaStream_t, and the result is a cudaError_t. Each function performs one launch.
// For rows of several tiles, `forward` performs a second launch if no ticket is left.
int forward(const WithScalars<ForwardParams>& params, void* stream);
int backward(const WithScalars<BackwardParams>& params, void* stream);

}  // namespace cuda

}  // namespace vae_fused
