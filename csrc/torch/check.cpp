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
      TORCH_CHECK_TYPE(
          false, "vae_fused: tensors must be floating-point tensors of 16, 32 or 64 bits, got ",
          t.scalar_type());
  }
}

void check_tensor(const Tensor& t, const char* name, c10::SymIntArrayRef shape,
                  at::ScalarType dtype, const Tensor& mu) {
  TORCH_CHECK_VALUE(t.sym_sizes() == shape, "vae_fused: ", name, " must have shape ", shape,
                    ", got ", t.sym_sizes());
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, "vae_fused: ", name, " must have dtype ", dtype,
                   ", got ", t.scalar_type());
  TORCH_CHECK(t.device() == mu.device(), "vae_fused: ", name, " must be on ", mu.device(), ", got ",
              t.device());
}

void check_like(const Tensor& t, const char* name, const Tensor& like) {
  check_tensor(t, name, like.sym_sizes(), like.scalar_type(), like);
}

void check_key(const Tensor& key, const Tensor& mu) {
  const bool is_signed = key.scalar_type() == at::kLong;  // in old versions of torch
  check_tensor(key, "key", {2}, is_signed ? at::kLong : at::kUInt64, mu);
}

at::ScalarType arithmetic_dtype(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace vae_fused
