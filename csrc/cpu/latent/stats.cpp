// The statistics of a batch on the CPU: tasks compute partial sums, which are then combined.
#include "cpu/latent/stats_tasks.h"

namespace vae_fused::cpu {
namespace {

template <typename T>
void finish_as(const StatsParams& p) {
  const int64_t cols = p.tasks.cols, groups = p.tasks.groups;
  for (int64_t c = 0; c < cols; ++c) {
    const auto part = [&](int k, int64_t g) { return p.partials[(k * groups + g) * cols + c]; };
    const auto total = [&](int k) {
      double sum = 0;
      for (int64_t g = 0; g < groups; ++g) sum += part(k, g);
      return sum;
    };
    math::Moments all = {total(math::kCount), 0, 0};
    for (int64_t g = 0; g < groups; ++g) {
      all.mean += part(math::kCount, g) * part(math::kMean, g) / all.n;
    }
    for (int64_t g = 0; g < groups; ++g) {
      const math::Moments moments_of_group = {part(math::kCount, g), part(math::kMean, g),
                                              part(math::kSquares, g)};
      all.squares += math::squares_around(moments_of_group, all.mean);
    }
    const auto stats = math::stats_of<T>(total(math::kKlStat), all);
    static_cast<T*>(p.kl)[c] = stats.kl;
    static_cast<T*>(p.mean)[c] = stats.mean;
    static_cast<T*>(p.variance)[c] = stats.variance;
    p.clamped[c] = static_cast<int64_t>(total(math::kClamped));
    p.non_finite[c] = static_cast<int64_t>(total(math::kNotFinite));
  }
}

}  // namespace

void stats(const WithScalars<StatsParams>& given, ParallelFor parallel_for) {
  with_scalars_read(given, [&](const StatsParams& params) {
    StatsTask task(params);
    const LatentBodies& bodies = VAE_FUSED_TABLE_IN_USE(kStats);
    const Bodies& bodies_for_options =
        has_default_options(params.gaussians) ? bodies.with_defaults : bodies.general;
    parallel_for(params.tasks.tasks(), 1, bodies_for_options[params.dtype], &task);
  });
  given.dtype == DType::kFloat64 ? finish_as<double>(given) : finish_as<float>(given);
}

}  // namespace vae_fused::cpu
