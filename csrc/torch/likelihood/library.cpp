// The schemas of all operators of the likelihood family. vae_fused/losses.py defines the names,
// defaults and errors for users.
//
//   output, second, third   the decoder's outputs, in the kind's order. `output` has the shape
//                           of the call, to which all other tensors are broadcast. All outputs
//                           have the same dtype.
//   target                  any floating-point dtype, uint8, int32 or int64
//   reduction, dim          the summed dimensions, and the divisor; see csrc/torch/reduction.h
//   mask                    bool; where it is false the loss and every gradient are 0
//   weight, library         in the arithmetic dtype; library has size 1 in the last dimension
//   options                 the kind and its numbers; see csrc/torch/likelihood/options.h
//   rows                    for a softmax: the maximum of each row, and the shift to add to its
//                           logits after the maximum is subtracted; otherwise empty
//   output_mask             which gradients to compute, in the order of the outputs; others are
//                           undefined
//
// The evidence lower bound adds a KL term (see csrc/params/likelihood.h):
//
//   kl                      0-d, reduced as the loss is, or one value for each sample; absent: the
//                           loss is that of nll
//   beta, beta_value        the weight of the KL: a 0-d tensor or, if absent, a number
//   capacity, capacity_value   the KL is replaced by its distance from this; none: no capacity
//   grad_mask               which gradients of the loss the forward launch also writes
#include <torch/library.h>

#include <string>

#include "torch/likelihood/ops.h"
#include "torch/node.h"

#define OBSERVATIONS                                                               \
  "Tensor output, Tensor? second, Tensor? third, Tensor target, Tensor? library, " \
  "Tensor? mask, Tensor? weight"
#define NUMBERS "str reduction, int[]? dim, float[]? options"
#define KL_TERM "Tensor? kl, Tensor? beta, Tensor? capacity"
#define NUMBERS_OF_KL "float beta_value, float? capacity_value"
#define OPTIONAL_GRADIENTS                                                              \
  "Tensor? grad_output, Tensor? grad_second, Tensor? grad_third, Tensor? grad_target, " \
  "Tensor? grad_library"
#define GRADIENTS                                                                   \
  "Tensor grad_output, Tensor grad_second, Tensor grad_third, Tensor grad_target, " \
  "Tensor grad_library"

namespace vae_fused {
namespace {

TORCH_LIBRARY_FRAGMENT(vae_fused, m) {
  const std::vector<at::Tag> pure = {at::Tag::pt2_compliant_tag};
  m.def("likelihood_options() -> (str[] scope, str[] name, float[] default)", likelihood_options);
  m.def("nll(" OBSERVATIONS ", *, " NUMBERS ") -> (Tensor nll, Tensor rows)", pure);
  // To record a backward call, autograd uses the overload `recorded`, which is implemented in
  // Python.
  for (const std::string overload : {"", ".recorded"}) {
    m.def(("nll_backward" + overload +
           "(Tensor grad, " OBSERVATIONS ", Tensor rows, *, " NUMBERS
           ", bool[5] output_mask) -> (" GRADIENTS ")")
              .c_str(),
          pure);
    m.def(("elbo_loss_backward" + overload +
           "(Tensor? grad_loss, Tensor? grad_reconstruction, Tensor? grad_kl, " OBSERVATIONS
           ", " KL_TERM ", Tensor rows, *, " NUMBERS ", " NUMBERS_OF_KL
           ", bool[7] output_mask) -> (" GRADIENTS ", Tensor grad_of_kl, Tensor grad_of_beta)")
              .c_str(),
          pure);
  }
  m.def("elbo_loss(" OBSERVATIONS ", " KL_TERM ", *, " NUMBERS ", " NUMBERS_OF_KL
        ", bool[5] grad_mask) -> (Tensor loss, Tensor? reconstruction, Tensor? reduced_kl, "
        "Tensor rows, " OPTIONAL_GRADIENTS ")",
        pure);
  m.def(
      "kl_term_backward(Tensor? grad_loss, Tensor? grad_kl, Tensor kl, Tensor? beta, "
      "Tensor? capacity, *, str reduction, " NUMBERS_OF_KL
      ", bool[2] output_mask) -> (Tensor grad_of_kl, Tensor grad_of_beta)",
      pure);
}

template <typename Library>
void implement(Library& m) {
  m.impl("nll", nll);
  m.impl("nll_backward", nll_backward);
  m.impl("elbo_loss", elbo_loss);
  m.impl("elbo_loss_backward", elbo_loss_backward);
  m.impl("kl_term_backward", kl_term_backward);
}

TORCH_LIBRARY_IMPL(vae_fused, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(vae_fused, Meta, m) { implement(m); }
#ifdef VAE_FUSED_WITH_CUDA
TORCH_LIBRARY_IMPL(vae_fused, CUDA, m) { implement(m); }
#endif

constexpr char kNllBackward[] = "vae_fused::nll_backward";
constexpr char kElboBackward[] = "vae_fused::elbo_loss_backward";

TORCH_LIBRARY_IMPL(vae_fused, Autograd, m) {
  m.impl("nll", autograd::nll);
  m.impl(kNllBackward, autograd::Backward<kNllBackward, decltype(nll_backward)>::call);
  m.impl("elbo_loss", autograd::elbo_loss);
  m.impl(kElboBackward, autograd::Backward<kElboBackward, decltype(elbo_loss_backward)>::call);
}

}  // namespace
}  // namespace vae_fused
