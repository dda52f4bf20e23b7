// A list of tensors on the CPU: their tiles are one range, for small tensors to go together.
#include "cpu/dispatch.h"
#include "space.h"

namespace vae_fused::cpu {
namespace {

constexpr int64_t kStride[] = {1};

// A tensor's call, of what the list has of it.
template <typename Params>
Params params_of(const MultiParams& list, const Item& item) {
  Params p;
  p.dtype = list.dtype;
  p.of.family = list.family;
  const auto vector = [](const void* data, Operand& operand) {
    return Binding{const_cast<void*>(data), kStride, &operand};
  };
  std::vector<Binding> bindings = {vector(item.mu, p.of.mu), vector(item.raw, p.of.raw)};
  if constexpr (std::is_same_v<Params, ForwardParams>) {
    bindings.push_back(vector(item.z, p.z));
    p.kl = list.kl;
    p.partials = list.partials + item.first_tile;
  } else {
    bindings.insert(bindings.end(), {vector(item.grad_z, p.grad_z), vector(item.grad_mu, p.grad_mu),
                                     vector(item.grad_raw, p.grad_raw)});
    p.kl_scale = item.weight;
    p.grad_kl = list.grad_kl;
    p.grad_kl_stride = 0;
  }
  make_space({item.n}, 1, bindings, p.space);
  return p;
}

struct ListTask {
  const MultiParams& list;
  Key key;
};

// The list's tiles [begin, end).
template <typename Params>
void run_tiles(void* context, int64_t begin, int64_t end) {
  const auto& task = *static_cast<const ListTask*>(context);
  for (int k = 0; k < task.list.items; ++k) {
    const Item& item = task.list.item[k];
    const int64_t first = std::max(begin - item.first_tile, int64_t{0});
    const int64_t last = std::min(end - item.first_tile, tiles_of(item.n));
    if (first >= last) continue;
    const auto params = params_of<Params>(task.list, item);
    Task<Params> call(params, {task.key.seed, task.key.offset + item.first_block});
    body_of(params)(&call, first, last);
  }
}

}  // namespace

void forward_multi(const MultiParams& list, ParallelFor parallel_for) {
  ListTask task{list, resolve(list.key)};
  parallel_for(list.tiles, kGrain, run_tiles<ForwardParams>, &task);
  double total = 0;
  for (int k = 0; k < list.items; ++k) {
    const Item& item = list.item[k];
    double kl = 0;  // twice
    for (int64_t t = 0; t < tiles_of(item.n); ++t) kl += list.partials[item.first_tile + t];
    total += 0.5 * item.weight * kl;
  }
  if (list.dtype == DType::kFloat64) {
    *static_cast<double*>(list.kl) = total;
  } else {
    *static_cast<float*>(list.kl) = static_cast<float>(total);
  }
  write_key(task.key, list.key_out);
}

void backward_multi(const MultiParams& list, ParallelFor parallel_for) {
  ListTask task{list, resolve(list.key)};
  parallel_for(list.tiles, kGrain, run_tiles<BackwardParams>, &task);
}

}  // namespace vae_fused::cpu
