#include "torch/likelihood/options.h"

#include <cmath>

#include "math/likelihood/student_t.h"
#include "torch/scale.h"

namespace vae_fused {
namespace {

constexpr double kLogRoot2Pi = 0.91893853320467274178, kLog2 = 0.69314718055994530942;
// Keeps e^-log_scale_min finite in float, even after multiplication by the distance from the mean.
constexpr double kLargestLogScale = 50;

// Converts an enumerator that was passed as a double. Casting NaN or an out-of-range value would be
// undefined behaviour.
template <typename E>
E enumerator(const char* name, double value, E last) {
  TORCH_CHECK_VALUE(value >= 0 && value <= static_cast<double>(last) && value == std::floor(value),
                    "vae_fused: ", name, " of a likelihood must be an integer between 0 and ",
                    static_cast<int>(last), ", got ", value);
  return static_cast<E>(value);
}

}  // namespace

OptionNames likelihood_options() { return names_of_options<math::GivenLikelihood>(); }

OptionNumbers::OptionNumbers(OptionList options)
    : given_(given_options<math::GivenLikelihood>(options)) {
  enumerator("kind", given_.kind, static_cast<LikelihoodKind>(kLikelihoodKinds - 1));
  TORCH_CHECK_VALUE(given_.sigma > 0, "vae_fused: sigma must be above 0, got ", given_.sigma);
  TORCH_CHECK_VALUE(given_.eps >= 0, "vae_fused: eps must be at least 0, got ", given_.eps);
  TORCH_CHECK_VALUE(given_.dispersion_max > 0, "vae_fused: dispersion_max must be above 0, got ",
                    given_.dispersion_max);
  TORCH_CHECK_VALUE(given_.df >= 0, "vae_fused: df must be at least 0, got ", given_.df);
  TORCH_CHECK_VALUE(given_.bits >= 1 && given_.bits <= 16,
                    "vae_fused: bits must be between 1 and 16, got ", given_.bits);
  TORCH_CHECK_VALUE(std::abs(given_.log_scale_min) <= kLargestLogScale,
                    "vae_fused: log_scale_min must be between -50 and 50, got ",
                    given_.log_scale_min);
}

bool OptionNumbers::is_softmax() const {
  return data_of(kind()) == Data::kCountOfMean &&
         given_.mean == static_cast<double>(math::FrontEnd::kSoftmax);
}

bool OptionNumbers::accepts(size_t outputs) const {
  switch (kind()) {
    case LikelihoodKind::kGaussian:
    case LikelihoodKind::kLaplace:
      return outputs <= 2;           // with one output, sigma is a number
    case LikelihoodKind::kStudentT:  // with two outputs, df is a number; with one, sigma as well
      return given_.df > 0 ? outputs <= 2 : outputs == 3;
    case LikelihoodKind::kNegativeBinomial:
    case LikelihoodKind::kNegativeBinomialLogits:
    case LikelihoodKind::kDiscretizedLogistic:
      return outputs == 2;
    case LikelihoodKind::kZeroInflatedNegativeBinomial:
      return outputs == 3;
    default:
      return outputs == 1;
  }
}

math::LikelihoodOptions<double> OptionNumbers::parsed(bool has_second) const {
  using math::FrontEnd;
  math::LikelihoodOptions<double> o;
  o.mean = enumerator("mean", given_.mean, FrontEnd::kSoftmax);
  o.dispersion = enumerator("dispersion", given_.dispersion, FrontEnd::kSoftplus);
  o.dispersion_max = given_.dispersion_max;
  o.eps = given_.eps;
  o.zero_inflation =
      enumerator("zero_inflation", given_.zero_inflation, math::ZeroInflation::kProbs);
  o.constants = given_.constants != 0;
  o.has_raw = has_second;
  o.scale = derived_scale(given_.scale);
  o.precision = 1 / given_.sigma;
  o.has_df = given_.df == 0;
  o.df = std::fmin(given_.df, math::kLargestTheta<float>);
  o.half_step = 1 / (std::exp2(given_.bits) - 1);
  o.log_scale_min = given_.log_scale_min;
  if (!o.constants) return o;
  switch (kind()) {
    case LikelihoodKind::kGaussian:
      o.constant = kLogRoot2Pi;
      break;
    case LikelihoodKind::kLaplace:
      o.constant = kLog2;
      break;
    case LikelihoodKind::kStudentT:
      o.constant = kLogRoot2Pi + (o.has_df ? 0 : math::student_excess(o.df));
      break;
    default:
      return o;
  }
  if (!has_second) o.constant += std::log(given_.sigma);
  return o;
}

}  // namespace vae_fused
