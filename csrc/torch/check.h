// Checks that keep the kernels within the memory of their tensors, whatever a caller passes.
// vae_fused/_checks.py checks the same conditions earlier, with messages for users.
#pragma once

#include "iteration/operand.h"
#include "torch/tensor.h"

namespace vae_fused {

DType dtype_of(const Tensor& t);

void check_tensor(const Tensor& t, const char* name, c10::SymIntArrayRef shape,
                  at::ScalarType dtype, const Tensor& mu);
void check_like(const Tensor& t, const char* name, const Tensor& like);
void check_key(const Tensor& key, const Tensor& mu);

}  // namespace vae_fused
