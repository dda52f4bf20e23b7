#include "torch/scale.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <iterator>
#include <utility>

namespace vae_fused {
namespace {

using math::ScaleBase;

// A public kind of scale computes unit * base(gain * x): a base with an affine map before it and a
// factor after it. The beta of softplus is part of both the map and the factor. math/scale.h
// derives the formulas.
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

}  // namespace

math::ScaleOptions<double> derived_scale(const math::GivenScale& given) {
  // The kind is checked as a double, because casting NaN or an out-of-range value would be
  // undefined behaviour.
  TORCH_CHECK_VALUE(
      given.kind >= 0 && given.kind < std::size(kKinds) && given.kind == std::floor(given.kind),
      "vae_fused: kind of a scale must be an integer between 0 and ", std::size(kKinds) - 1,
      ", got ", given.kind);
  TORCH_CHECK_VALUE(given.low <= given.high, "vae_fused: clamp must have lo <= hi, got (",
                    given.low, ", ", given.high,
                    ")");  // also raised for NaN
  TORCH_CHECK_VALUE(given.beta > 0, "vae_fused: beta must be above 0, got ", given.beta);
  TORCH_CHECK_VALUE(given.soft_clamp >= 0, "vae_fused: soft_clamp must be at least 0, got ",
                    given.soft_clamp);
  const Kind& kind = kKinds[static_cast<size_t>(given.kind)];
  math::ScaleOptions<double> s = math::underived(given);
  s.base = kind.base;
  s.gain = kind.gain * given.beta * given.gain;
  s.shift = kind.gain * given.beta * given.shift;
  s.per_soft_clamp = given.soft_clamp > 0 ? 1 / given.soft_clamp : 0;
  s.unit = kind.unit / given.beta;
  s.log_unit_squared = 2 * std::log(s.unit);
  if (s.base == ScaleBase::kSqrt) {
    s.root_floor = std::exchange(s.var_floor, 0.0) / (s.unit * s.unit);
  }
  return s;
}

}  // namespace vae_fused
