#include "torch/options.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <iterator>
#include <utility>

#include "math/gaussian.h"

namespace vae_fused {
namespace {

using math::ScaleBase;

// A public kind of scale is a base with an affine map before and a factor after:
// unit * base(gain * x). softplus has its beta in both.
struct Kind {
  ScaleBase base;
  double gain, unit;
};

constexpr Kind kKinds[] = {
    {ScaleBase::kExp, 0.5, 1},      // logvar
    {ScaleBase::kExp, 1, 1},        // logstd
    {ScaleBase::kIdentity, 1, 1},   // std
    {ScaleBase::kSqrt, 1, 1},       // var
    {ScaleBase::kSoftplus, 1, 1},   // softplus
    {ScaleBase::kSigmoid, 0.5, 2},  // sigmoid2
};

math::ScaleOptions<double> parse_scale(const double* o) {
  // Asked of the double: to cast NaN, or what is out of range, is undefined.
  TORCH_CHECK_VALUE(o[0] >= 0 && o[0] < std::size(kKinds) && o[0] == std::floor(o[0]),
                    "vae_fused: unknown kind of scale ", o[0]);
  TORCH_CHECK_VALUE(o[3] <= o[4], "vae_fused: clamp is (", o[3], ", ", o[4], ")");  // nor NaN
  const double beta = o[6];
  TORCH_CHECK_VALUE(beta > 0 && o[5] >= 0, "vae_fused: beta is ", beta, ", soft clamp ", o[5]);
  const Kind& kind = kKinds[static_cast<size_t>(o[0])];
  math::ScaleOptions<double> s;
  s.base = kind.base;
  s.gain = kind.gain * beta * o[1];
  s.shift = kind.gain * beta * o[2];
  s.low = o[3];
  s.high = o[4];
  s.soft_clamp = o[5];
  s.per_soft_clamp = o[5] > 0 ? 1 / o[5] : 0;
  s.unit = kind.unit / beta;
  s.log_unit_squared = 2 * std::log(s.unit);
  s.var_floor = o[7];
  s.std_floor = o[8];
  if (s.base == ScaleBase::kSqrt) {
    s.root_floor = std::exchange(s.var_floor, 0.0) / (s.unit * s.unit);
  }
  return s;
}

}  // namespace

math::Family<double> parse_options(OptionList options) {
  math::Family<double> f;
  if (!options.has_value()) return f;
  TORCH_CHECK_VALUE(options->size() == kOptions, "vae_fused: options has ", options->size(),
                    " numbers, wants ", kOptions);
  const double* o = options->data();
  f.posterior = parse_scale(o);
  f.prior = parse_scale(o + 9);
  f.mu_soft_clamp = o[18];
  f.per_mu_soft_clamp = o[18] > 0 ? 1 / o[18] : 0;
  f.prior_mean = o[19];
  const math::Scale<double> tau = math::scale_of(f.prior, o[20]);
  f.prior_precision = math::precision_of(tau.sigma);
  f.prior_x = tau.x;
  f.temperature = o[21];
  f.linear = o[25] != 0;
  f.free_bits = f.linear ? -std::numeric_limits<double>::infinity() : o[22];
  f.to_posterior = o[23];
  f.to_prior = o[24];
  f.constant = o[26];
  return f;
}

}  // namespace vae_fused
