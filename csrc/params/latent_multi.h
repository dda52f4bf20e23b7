// The calls of the latent family that process a list of tensors: see params/latent.h.
#pragma once

#include "params/latent.h"

namespace vae_fused {

// A list of contiguous tensors that one launch processes. Each tensor has its own prior, and kl is
// the weighted sum of the tensors' KLs. A tensor's noise begins at block first_block of the noise
// stream.
constexpr int kMaxItems = 224;  // 28 KiB of kernel parameters, whose limit is 32 KiB

struct Item {
  const void *mu = nullptr, *raw = nullptr;
  const void *prior_mean = nullptr,
             *prior_raw = nullptr;  // in the shape of mu; absent: `prior` applies
  math::FixedPrior prior;
  void* z = nullptr;             // forward; absent: the KL alone
  const void* grad_z = nullptr;  // backward; absent: z has no gradient
  void *grad_mu = nullptr, *grad_raw = nullptr;
  int64_t n = 0, first_tile = 0;
  uint64_t first_block = 0;
  double weight = 1.0;
};

// Calls visit(name, data) for each tensor of an item. The name is that of the same operand in a
// single-tensor call.
template <typename Visit>
void for_each_tensor(const Item& item, const Visit& visit) {
  visit("mu", item.mu);
  visit("raw", item.raw);
  visit("prior_mean", item.prior_mean);
  visit("prior_raw", item.prior_raw);
  visit("z", item.z);
  visit("grad_z", item.grad_z);
  visit("grad_mu", item.grad_mu);
  visit("grad_raw", item.grad_raw);
}

struct MultiParams {
  DType dtype = DType::kFloat32;
  RngKey key;
  math::LatentOptions<double> options;
  int32_t items = 0;
  int64_t tiles = 0;
  int64_t tile = kTile;           // on a GPU a multiple of kTile
  void* kl = nullptr;             // [1], forward
  double* partials = nullptr;     // [tiles], forward: sums in a unit that the kernel chooses
  uint64_t* key_out = nullptr;    // [2], forward; absent: not needed
  const void* grad_kl = nullptr;  // [1], backward; absent: the KL has no gradient
  Item item[kMaxItems];
};

inline math::LatentOptions<double>& options_of(MultiParams& p) { return p.options; }

namespace cpu {

void forward_multi(const WithScalars<MultiParams>& params, ParallelFor parallel_for);
void backward_multi(const WithScalars<MultiParams>& params, ParallelFor parallel_for);

}  // namespace cpu

namespace cuda {

int forward_multi(const WithScalars<MultiParams>& params, void* stream);
int backward_multi(const WithScalars<MultiParams>& params, void* stream);

}  // namespace cuda

}  // namespace vae_fused
