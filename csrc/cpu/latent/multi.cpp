// Computes a list of tensors on the CPU. The tiles of all tensors form one range, so that small
// tensors share a task.
#include "cpu/latent/tasks.h"
#include "cpu/noise.h"
#include "iteration/make_space.h"
#include "params/latent_multi.h"

namespace vae_fused::cpu {
namespace {

constexpr int64_t kStride[] = {1};

// The params of a call for one tensor of the list.
template <typename Params>
Params params_of(const MultiParams& list, const Item& item) {
  Params p;
  p.dtype = list.dtype;
  p.gaussians.options = list.options;
  p.gaussians.options.prior_mean = item.prior.mean;
  p.gaussians.options.prior_precision = item.prior.precision;
  p.gaussians.options.prior_x = item.prior.x;
  std::vector<BoundTensor> bound_tensors;
  for_each_operand(p, [&](const OperandRef& ref) {
    for_each_tensor(item, [&](std::string_view name, const void* data) {
      if (name == ref.name)
        bound_tensors.push_back({const_cast<void*>(data), kStride, ref.operand});
    });
  });
  if constexpr (std::is_same_v<Params, ForwardParams>) {
    p.kl = {list.kl, 1.0, list.partials + item.first_tile};
  } else {
    p.grad_kl = {list.grad_kl, 0, item.weight};
  }
  make_space({item.n}, 1, bound_tensors, p.space);
  return p;
}

struct ListTask {
  const MultiParams& list;
  Key key;
};

// Computes the tiles [begin, end) of the list.
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

template <typename Params>
void run_all(const WithScalars<MultiParams>& given, const Key& key, ParallelFor parallel_for) {
  with_scalars_read(given, [&](const MultiParams& list) {
    ListTask task{list, key};
    parallel_for(list.tiles, kGrain, run_tiles<Params>, &task);
  });
}

}  // namespace

void forward_multi(const WithScalars<MultiParams>& list, ParallelFor parallel_for) {
  const Key key = resolve(list.key);
  run_all<ForwardParams>(list, key, parallel_for);
  double total = 0;
  for (int k = 0; k < list.items; ++k) {
    const Item& item = list.item[k];
    double kl = 0;  // twice the KL
    for (int64_t t = 0; t < tiles_of(item.n); ++t) kl += list.partials[item.first_tile + t];
    total += 0.5 * item.weight * kl;
  }
  if (list.dtype == DType::kFloat64) {
    *static_cast<double*>(list.kl) = total;
  } else {
    *static_cast<float*>(list.kl) = static_cast<float>(total);
  }
  write_key(key, list.key_out);
}

void backward_multi(const WithScalars<MultiParams>& list, ParallelFor parallel_for) {
  run_all<BackwardParams>(list, resolve(list.key), parallel_for);
}

}  // namespace vae_fused::cpu
