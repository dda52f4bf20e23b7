// Adds one more option, `fake`, to each list of options: see test_option_lists.py. Prints all code
// that uses the lists but ignores `fake`, and then the names of the numbers that Python passes.
#include <cstdio>
#include <cstring>

#include "params/latent.h"

namespace {

using namespace vae_fused;

void require(bool holds, const char* what) {
  if (!holds) std::printf("ignored: %s\n", what);
}

// Checks a call whose options have default values except for `fake` in this scope.
void check(const char* scope, bool decides) {
  math::GivenLatent given;
  given.visit_numbers([&](const char* s, const char* name, double& number) {
    if (std::strcmp(s, scope) == 0 && std::strcmp(name, "fake") == 0) number = 2;
  });
  const math::LatentOptions<double> f = math::underived(given);
  const math::LatentOptions<float> narrow = math::narrowed<float>(f);
  const bool in_scale = *scope != '\0', of_prior = std::strcmp(scope, "prior") == 0;
  const auto& scale = of_prior ? f.prior : f.posterior;
  const auto& narrow_scale = of_prior ? narrow.prior : narrow.posterior;
  require((in_scale ? scale.fake : f.fake) == 2, "by underived");
  require((in_scale ? narrow_scale.fake : narrow.fake) == 2, "by narrowed");
  require(!(f == math::LatentOptions<double>{}), "by the comparison");
  require(math::is_default(f) != decides, "by is_default");
  float raw = 0;
  Gaussians gaussians;
  gaussians.raw.data = &raw;
  gaussians.options = f;
  require(has_default_options(gaussians) != decides, "by the choice of kernels");
}

// Checks `fake` as an option that is passed on the device.
void check_scalar() {
  const float value = 3;
  WithScalars<ForwardParams> call;
  require(!call.scalars.any(), "by a call without options on the device");
  call.scalars.visit([&](const char* name, const void*& pointer) {
    if (std::strcmp(name, "fake") == 0) pointer = &value;
  });
  require(call.scalars.any(), "by a call with options on the device");
  math::LatentOptions<double> f;
  math::read_scalars<float>(call.scalars, f);
  require(f.fake == 3 && f.temperature == 1, "by the reader of options on the device");
  require(math::Weights<float>(math::LatentOptions<float>{}, call.scalars).fake == 3,
          "by the weights");
}

}  // namespace

int main() {
  check_scalar();
  check("posterior", true);
  check("", true);
  check("prior", false);  // a prior's scale needs a tensor, which already excludes default options
  math::GivenLatent().visit_numbers([](const char* scope, const char* name, double& number) {
    std::printf("%s.%s %g\n", scope, name, number);
  });
}
