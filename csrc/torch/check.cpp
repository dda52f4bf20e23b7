#include "torch/check.h"

namespace vae_fused {

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, "vae_fused: unsupported dtype ", t.scalar_type());
  }
}

void check_shape_and_device(const Tensor& t, const char* name, const Tensor& like) {
  TORCH_CHECK_VALUE(t.sym_sizes() == like.sym_sizes(), "vae_fused: ", name, " has shape ",
                    t.sym_sizes(), ", wants ", like.sym_sizes());
  TORCH_CHECK(t.device() == like.device(), "vae_fused: ", name, " is on ", t.device(), ", mu on ",
              like.device());
}

void check_like(const Tensor& t, const char* name, const Tensor& like) {
  check_shape_and_device(t, name, like);
  TORCH_CHECK_TYPE(t.scalar_type() == like.scalar_type(), "vae_fused: ", name, " has dtype ",
                   t.scalar_type(), ", mu has ", like.scalar_type());
}

void check_key(const Tensor& key, const Tensor& mu) {
  TORCH_CHECK_TYPE(key.scalar_type() == at::kUInt64 || key.scalar_type() == at::kLong,
                   "vae_fused: key has dtype ", key.scalar_type(), ", wants uint64 or int64");
  TORCH_CHECK_VALUE(key.dim() == 1 && key.sym_size(0) == 2, "vae_fused: key has shape ",
                    key.sym_sizes(), ", wants (2,)");
  TORCH_CHECK(key.device() == mu.device(), "vae_fused: key is on ", key.device(), ", mu on ",
              mu.device());
}

Noise Noise::given(const OptionalTensor& eps, const OptionalTensor& key) {
  TORCH_CHECK_VALUE(eps.has_value() != key.has_value(), "vae_fused: give one of eps and key");
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

void Noise::check(const Tensor& like) const {
  if (eps.defined()) check_like(eps, "eps", like);
  if (key.defined()) check_key(key, like);
}

void Tensors::check(const Tensor& mu) const {
  if (raw.defined()) check_like(raw, "raw", mu);
  if (prior_mean.defined()) check_like(prior_mean, "prior_mean", mu);
  if (prior_raw.defined()) check_like(prior_raw, "prior_raw", mu);
  if (!mask.defined()) return;
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, "vae_fused: mask has dtype ",
                   mask.scalar_type(), ", wants bool");
  check_shape_and_device(mask, "mask", mu);
}

bool Tensors::plain() const {
  return raw.defined() && !prior_mean.defined() && !prior_raw.defined() && !mask.defined() &&
         !options.has_value();
}

}  // namespace vae_fused
