// The schemas of all operators of the latent family. vae_fused/functional.py defines the names,
// defaults and errors for users. It passes tensors of one dtype and device, expanded to the shape
// of mu.
//
// Overloads without a suffix are pure functions of their tensors, and require exactly one of eps
// and key. The overload .generator reserves a new key and returns it as a non-differentiable
// uint64[2].
//
//   reduction, dim   the summed dimensions of the KL, and the divisor; see csrc/torch/reduction.h
//   h, packed_dim    mu and raw, packed as the halves of h along that dimension
//   raw              the raw scale: logvar, or the kind that `options` select; none: sigma = 1
//   prior_...        the prior's mean and raw scale; none: the numbers in `options`, or N(0, 1)
//   mask             bool; where it is false, z, the KL and every gradient are 0
//   options          pairs of a position in latent_options() and a value; the options of a scale
//                    are in the scope "posterior" or "prior"
//   temperature, free_bits, to_posterior, to_prior
//                    0-d tensors in the arithmetic dtype, instead of the numbers in `options`
//   prior_numbers    for a list: a mean and a raw scale for each tensor; none: those in `options`
//   sample_shape     z and eps have shape (*sample_shape, *mu.shape)
//   output_mask      which gradients to compute, in the order of the outputs; others are undefined
#include <torch/library.h>

#include <string>

#include "torch/latent/ops.h"
#include "torch/node.h"

#define REDUCTION "str reduction, int[]? dim"
#define SCALAR(name) ", Tensor? " #name "=None"
#define NUMBERS "float[]? options=None" VAE_FUSED_DEVICE_SCALARS(SCALAR)
#define OPTIONS "Tensor? mask=None, " NUMBERS
#define PRIOR_AND_OPTIONS "Tensor? prior_mean=None, Tensor? prior_raw=None, " OPTIONS
#define SAMPLES "SymInt[]? sample_shape=None"
#define LIST_OPTIONS "Tensor?[] prior_mean, Tensor?[] prior_raw, float[] prior_numbers, " NUMBERS

namespace vae_fused {
namespace {

TORCH_LIBRARY_FRAGMENT(vae_fused, m) {
  const std::vector<at::Tag> pure = {at::Tag::pt2_compliant_tag};
  const std::vector<at::Tag> random = {at::Tag::pt2_compliant_tag,
                                       at::Tag::nondeterministic_seeded};

  m.def("reparameterize_kl(Tensor mu, Tensor raw, *, Tensor? eps, Tensor? key, " REDUCTION
        ", " PRIOR_AND_OPTIONS ", " SAMPLES ") -> (Tensor z, Tensor kl)",
        pure);
  m.def("reparameterize_kl.generator(Tensor mu, Tensor raw, *, Generator? generator, " REDUCTION
        ", " PRIOR_AND_OPTIONS ", " SAMPLES ") -> (Tensor z, Tensor kl, Tensor key)",
        random);
  m.def("reparameterize(Tensor mu, Tensor raw, *, Tensor? eps, Tensor? key, " OPTIONS ", " SAMPLES
        ") -> Tensor z",
        pure);
  m.def("reparameterize.generator(Tensor mu, Tensor raw, *, Generator? generator, " OPTIONS
        ", " SAMPLES ") -> (Tensor z, Tensor key)",
        random);
  m.def("gaussian_kl(Tensor mu, Tensor? raw, *, " REDUCTION ", " PRIOR_AND_OPTIONS ") -> Tensor kl",
        pure);
  m.def(
      "reparameterize_kl_moments(Tensor h, *, int packed_dim, Tensor? eps, Tensor? key, " REDUCTION
      ", " PRIOR_AND_OPTIONS ", " SAMPLES ") -> (Tensor z, Tensor kl)",
      pure);
  m.def(
      "reparameterize_kl_moments.generator(Tensor h, *, int packed_dim, Generator? "
      "generator, " REDUCTION ", " PRIOR_AND_OPTIONS ", " SAMPLES
      ") -> (Tensor z, Tensor kl, Tensor key)",
      random);
  m.def(
      "reparameterize_kl_multi(Tensor[] mu, Tensor[] raw, *, Tensor key, "
      "str reduction, " LIST_OPTIONS ") -> (Tensor[] z, Tensor kl)",
      pure);
  m.def(
      "reparameterize_kl_multi.generator(Tensor[] mu, Tensor[] raw, *, Generator? generator, "
      "str reduction, " LIST_OPTIONS ") -> (Tensor[] z, Tensor kl, Tensor key)",
      random);
  m.def("gaussian_kl_multi(Tensor[] mu, Tensor[] raw, *, str reduction, " LIST_OPTIONS
        ") -> Tensor kl",
        pure);
  m.def("latent_stats(Tensor mu, Tensor raw, *, int[] dim, " PRIOR_AND_OPTIONS
        ") -> (Tensor kl, Tensor mean, Tensor variance, Tensor clamped, Tensor non_finite)",
        pure);
  // To record a backward call, autograd uses the overload `recorded`, which is implemented in
  // Python.
  for (const std::string overload : {"", ".recorded"}) {
    const auto define = [&](const std::string& name, const char* signature) {
      m.def((name + overload + signature).c_str(), pure);
    };
    define("reparameterize_kl_multi_backward",
           "(Tensor?[] grad_z, Tensor? grad_kl, Tensor[] mu, Tensor[] raw, *, Tensor? key, "
           "str reduction, " LIST_OPTIONS ") -> (Tensor[] grad_mu, Tensor[] grad_raw)");
    define("reparameterize_kl_moments_backward",
           "(Tensor? grad_z, Tensor? grad_kl, Tensor h, *, int packed_dim, Tensor? eps, "
           "Tensor? key, " REDUCTION ", " PRIOR_AND_OPTIONS
           ", bool[4] output_mask) -> (Tensor grad_h, Tensor grad_eps, Tensor grad_prior_mean, "
           "Tensor grad_prior_raw)");
    define("reparameterize_kl_backward",
           "(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor? raw, *, Tensor? eps, "
           "Tensor? key, " REDUCTION ", " PRIOR_AND_OPTIONS
           ", bool[5] output_mask) -> (Tensor grad_mu, Tensor grad_raw, Tensor grad_eps, "
           "Tensor grad_prior_mean, Tensor grad_prior_raw)");
  }
  m.def("latent_options() -> (str[] scope, str[] name, float[] default)", latent_options);
}

template <typename Library>
void implement(Library& m) {
  m.impl("reparameterize_kl", reparameterize_kl);
  m.impl("reparameterize_kl.generator", reparameterize_kl_generator);
  m.impl("reparameterize", reparameterize);
  m.impl("reparameterize.generator", reparameterize_generator);
  m.impl("gaussian_kl", gaussian_kl);
  m.impl("latent_stats", latent_stats);
  m.impl("reparameterize_kl_moments", reparameterize_kl_moments);
  m.impl("reparameterize_kl_moments.generator", reparameterize_kl_moments_generator);
  m.impl("reparameterize_kl_moments_backward", reparameterize_kl_moments_backward);
  m.impl("reparameterize_kl_backward", reparameterize_kl_backward);
  m.impl("reparameterize_kl_multi", reparameterize_kl_multi);
  m.impl("reparameterize_kl_multi.generator", reparameterize_kl_multi_generator);
  m.impl("gaussian_kl_multi", gaussian_kl_multi);
  m.impl("reparameterize_kl_multi_backward", reparameterize_kl_multi_backward);
}

// The same functions are registered for all devices. They allocate the results on every device, and
// launch a kernel on every device except meta.
TORCH_LIBRARY_IMPL(vae_fused, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(vae_fused, Meta, m) { implement(m); }
#ifdef VAE_FUSED_WITH_CUDA
TORCH_LIBRARY_IMPL(vae_fused, CUDA, m) { implement(m); }
#endif

constexpr char kBackward[] = "vae_fused::reparameterize_kl_backward";
constexpr char kMomentsBackward[] = "vae_fused::reparameterize_kl_moments_backward";
constexpr char kMultiBackward[] = "vae_fused::reparameterize_kl_multi_backward";

TORCH_LIBRARY_IMPL(vae_fused, Autograd, m) {
  using autograd::Backward;
  m.impl(kBackward, Backward<kBackward, decltype(reparameterize_kl_backward)>::call);
  m.impl(kMomentsBackward,
         Backward<kMomentsBackward, decltype(reparameterize_kl_moments_backward)>::call);
  m.impl(kMultiBackward,
         Backward<kMultiBackward, decltype(reparameterize_kl_multi_backward)>::call);
  m.impl("reparameterize_kl", autograd::reparameterize_kl);
  m.impl("reparameterize_kl.generator", autograd::reparameterize_kl_generator);
  m.impl("reparameterize", autograd::reparameterize);
  m.impl("reparameterize.generator", autograd::reparameterize_generator);
  m.impl("gaussian_kl", autograd::gaussian_kl);
  m.impl("latent_stats", autograd::latent_stats);
  m.impl("reparameterize_kl_moments", autograd::reparameterize_kl_moments);
  m.impl("reparameterize_kl_moments.generator", autograd::reparameterize_kl_moments_generator);
  m.impl("reparameterize_kl_multi", autograd::reparameterize_kl_multi);
  m.impl("reparameterize_kl_multi.generator", autograd::reparameterize_kl_multi_generator);
  m.impl("gaussian_kl_multi", autograd::gaussian_kl_multi);
}

}  // namespace
}  // namespace vae_fused
