// A list of tensors on the CPU: a call each. Launches cost nothing here, and a tensor of a tile
// stays on the caller's thread anyway.
#include "space.h"

namespace vae_fused::cpu {
namespace {

// What a tensor's call has of the list's.
template <typename Params>
Params params_of(const MultiParams& list, const Item& item) {
  Params p;
  p.dtype = list.dtype;
  p.key = list.key;
  p.key.offset += item.first_block << list.key.shift;
  p.of.plain = list.plain;
  p.of.family = list.family;
  p.kl_scale = item.weight;
  return p;
}

constexpr int64_t kStride[] = {1};

}  // namespace

void forward_multi(const MultiParams& params, ParallelFor parallel_for) {
  double total = 0;
  for (int k = 0; k < params.items; ++k) {
    const Item& item = params.item[k];
    auto p = params_of<ForwardParams>(params, item);
    make_space({item.n}, 1,
               {{const_cast<void*>(item.mu), kStride, &p.of.mu},
                {const_cast<void*>(item.raw), kStride, &p.of.raw},
                {item.z, kStride, &p.z}},
               p.space);
    float kl32 = 0;
    double kl64 = 0;
    p.kl = params.dtype == DType::kFloat64 ? static_cast<void*>(&kl64) : &kl32;
    p.partials = params.partials + item.first_tile;
    forward(p, parallel_for);
    total += kl64 + kl32;
  }
  if (params.dtype == DType::kFloat64) {
    *static_cast<double*>(params.kl) = total;
  } else {
    *static_cast<float*>(params.kl) = static_cast<float>(total);
  }
  if (!params.key_out) return;
  const Key key = resolve(params.key);
  params.key_out[0] = key.seed;
  params.key_out[1] = key.offset;
}

void backward_multi(const MultiParams& params, ParallelFor parallel_for) {
  for (int k = 0; k < params.items; ++k) {
    const Item& item = params.item[k];
    auto p = params_of<BackwardParams>(params, item);
    p.grad_kl = params.grad_kl;
    p.grad_kl_stride = 0;
    make_space({item.n}, 1,
               {{const_cast<void*>(item.mu), kStride, &p.of.mu},
                {const_cast<void*>(item.raw), kStride, &p.of.raw},
                {const_cast<void*>(item.grad_z), kStride, &p.grad_z},
                {item.grad_mu, kStride, &p.grad_mu},
                {item.grad_raw, kStride, &p.grad_raw}},
               p.space);
    backward(p, parallel_for);
  }
}

}  // namespace vae_fused::cpu
