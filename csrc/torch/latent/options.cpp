#include "torch/latent/options.h"

#include <cmath>

#include "math/latent/gaussian.h"
#include "torch/check.h"
#include "torch/scale.h"

namespace vae_fused {
namespace {

math::LatentOptions<double> derived(const math::GivenLatent& given) {
  math::LatentOptions<double> o = math::underived(given);
  o.posterior = derived_scale(given.posterior);
  o.prior = derived_scale(given.prior);
  o.per_mu_soft_clamp = given.mu_soft_clamp > 0 ? 1 / given.mu_soft_clamp : 0;
  const math::FixedPrior prior = fixed_prior(o, given.prior_mean, given.prior_raw);
  o.prior_precision = prior.precision;
  o.prior_x = prior.x;
  if (o.is_linear_form || o.at_sample) o.free_bits = -std::numeric_limits<double>::infinity();
  return o;
}

}  // namespace

math::FixedPrior fixed_prior(const math::LatentOptions<double>& options, double mean, double raw) {
  const math::Scale<double> tau = math::scale_of(options.prior, raw);
  return {mean, math::precision_of(tau.sigma), tau.x};
}

OptionNames latent_options() { return names_of_options<math::GivenLatent>(); }

math::LatentOptions<double> parse_options(OptionList options) {
  if (!options.has_value()) return {};
  return derived(given_options<math::GivenLatent>(options));
}

bool GivenOptions::has_scalars() const {
  bool any = false;
  for_each_scalar([&](const char*, const OptionalTensor& t) { any = any || t.has_value(); });
  return any;
}

void GivenOptions::check(const Tensor& mu) const {
  for_each_scalar([&](const char* name, const OptionalTensor& t) {
    if (t) check_tensor(*t, name, {}, arithmetic_dtype(mu), mu);
  });
}

math::DeviceScalars GivenOptions::pointers(const math::LatentOptions<double>& options) const {
  math::DeviceScalars result;
#define VAE_FUSED_POINTER_TO(name) \
  if (name) result.name = name->const_data_ptr();
  VAE_FUSED_DEVICE_SCALARS(VAE_FUSED_POINTER_TO)
#undef VAE_FUSED_POINTER_TO
  if (options.is_linear_form || options.at_sample)
    result.free_bits = nullptr;  // these forms have a floor of -inf
  return result;
}

}  // namespace vae_fused
