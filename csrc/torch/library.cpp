// Every operator of the library on one page. Names, defaults and errors a person reads are
// vae_fused/functional.py's; the operators take what it has prepared: mu, logvar, eps and z of one
// shape, dtype and device.
//
// Overloads without suffix are pure functions of their tensors: exactly one of eps and key is
// given. Overload .generator reserves a fresh key and returns it: a non-differentiable uint64[2].
//
//   reduction, dim   what the KL is summed over and divided by; see csrc/torch/reduction.h
//   h, packed_dim    mu and logvar, packed as the halves of h along that dimension
//   output_mask      which of grad_mu, grad_logvar and grad_eps to compute; the rest are undefined
#include <torch/library.h>

#include "torch/ops.h"

namespace vae_fused {
namespace {

TORCH_LIBRARY(vae_fused, m) {
  const std::vector<at::Tag> pure = {at::Tag::pt2_compliant_tag};
  const std::vector<at::Tag> random = {at::Tag::pt2_compliant_tag,
                                       at::Tag::nondeterministic_seeded};

  m.def(
      "reparameterize_kl(Tensor mu, Tensor logvar, *, Tensor? eps, Tensor? key, str reduction, "
      "int[]? dim) -> (Tensor z, Tensor kl)",
      pure);
  m.def(
      "reparameterize_kl.generator(Tensor mu, Tensor logvar, *, Generator? generator, "
      "str reduction, int[]? dim) -> (Tensor z, Tensor kl, Tensor key)",
      random);
  m.def("reparameterize(Tensor mu, Tensor logvar, *, Tensor? eps, Tensor? key) -> Tensor z", pure);
  m.def(
      "reparameterize.generator(Tensor mu, Tensor logvar, *, Generator? generator) "
      "-> (Tensor z, Tensor key)",
      random);
  m.def("gaussian_kl(Tensor mu, Tensor logvar, *, str reduction, int[]? dim) -> Tensor kl", pure);
  m.def(
      "reparameterize_kl_moments(Tensor h, *, int packed_dim, Tensor? eps, Tensor? key, "
      "str reduction, int[]? dim) -> (Tensor z, Tensor kl)",
      pure);
  m.def(
      "reparameterize_kl_moments.generator(Tensor h, *, int packed_dim, Generator? generator, "
      "str reduction, int[]? dim) -> (Tensor z, Tensor kl, Tensor key)",
      random);
  m.def(
      "reparameterize_kl_moments_backward(Tensor? grad_z, Tensor? grad_kl, Tensor h, *, "
      "int packed_dim, Tensor? eps, Tensor? key, str reduction, int[]? dim, bool[2] output_mask) "
      "-> (Tensor grad_h, Tensor grad_eps)",
      pure);
  m.def(
      "reparameterize_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, *, "
      "Tensor? eps, Tensor? key, str reduction, int[]? dim, bool[3] output_mask) "
      "-> (Tensor grad_mu, Tensor grad_logvar, Tensor grad_eps)",
      pure);
}

template <typename Library>
void implement(Library& m) {
  m.impl("reparameterize_kl", reparameterize_kl);
  m.impl("reparameterize_kl.generator", reparameterize_kl_generator);
  m.impl("reparameterize", reparameterize);
  m.impl("reparameterize.generator", reparameterize_generator);
  m.impl("gaussian_kl", gaussian_kl);
  m.impl("reparameterize_kl_moments", reparameterize_kl_moments);
  m.impl("reparameterize_kl_moments.generator", reparameterize_kl_moments_generator);
  m.impl("reparameterize_kl_moments_backward", reparameterize_kl_moments_backward);
  m.impl("reparameterize_kl_backward", reparameterize_kl_backward);
}

// One implementation for all: it allocates alike everywhere, and launches where there is a device.
TORCH_LIBRARY_IMPL(vae_fused, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(vae_fused, Meta, m) { implement(m); }
#ifdef VAE_FUSED_WITH_CUDA
TORCH_LIBRARY_IMPL(vae_fused, CUDA, m) { implement(m); }
#endif

TORCH_LIBRARY_IMPL(vae_fused, Autograd, m) {
  m.impl("reparameterize_kl", autograd::reparameterize_kl);
  m.impl("reparameterize_kl.generator", autograd::reparameterize_kl_generator);
  m.impl("reparameterize", autograd::reparameterize);
  m.impl("reparameterize.generator", autograd::reparameterize_generator);
  m.impl("gaussian_kl", autograd::gaussian_kl);
  m.impl("reparameterize_kl_moments", autograd::reparameterize_kl_moments);
  m.impl("reparameterize_kl_moments.generator", autograd::reparameterize_kl_moments_generator);
}

}  // namespace
}  // namespace vae_fused
