// One autograd node for every operator: it saves mu and logvar (or h, where they are packed) and
// the noise's origin (the key, or the explicit eps), nothing tensor-sized of its own, and its
// backward is one launch.
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "torch/ops.h"
#include "torch/reduction.h"

namespace vae_fused::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A call of an operator through the dispatcher, below autograd.
template <typename Signature>
class Op {
 public:
  Op(const char* name, const char* overload)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>()) {
  }
  template <typename... Args>
  auto operator()(Args&&... args) const {
    return handle_.call(std::forward<Args>(args)...);
  }

 private:
  c10::TypedOperatorHandle<Signature> handle_;
};

#define VAE_FUSED_OP(function, name, overload) \
  static const Op<decltype(vae_fused::function)> op("vae_fused::" name, overload)

// What a call produces, in the order of its operator's schema.
enum class Call {
  kSampleAndKl,
  kSampleAndKlGenerator,
  kMoments,
  kMomentsGenerator,
  kSample,
  kSampleGenerator,
  kKl
};

bool is_packed(Call call) { return call == Call::kMoments || call == Call::kMomentsGenerator; }
bool reserves_key(Call call) {
  return call == Call::kSampleAndKlGenerator || call == Call::kMomentsGenerator ||
         call == Call::kSampleGenerator;
}

// `h` instead of mu and logvar where the call is packed.
struct Posterior {
  OptionalTensor mu, logvar, h = std::nullopt;
  int64_t packed_dim = 0;
};

struct Arguments {
  Call call;
  OptionalTensor key = std::nullopt;
  OptionalGenerator generator = std::nullopt;
  std::string_view reduction = "sum";
  at::OptionalIntArrayRef dim = std::nullopt;
};

variable_list run(const Posterior& q, const OptionalTensor& eps, const Arguments& a) {
  switch (a.call) {
    case Call::kSampleAndKl: {
      VAE_FUSED_OP(reparameterize_kl, "reparameterize_kl", "");
      auto [z, kl] = op(*q.mu, *q.logvar, eps, a.key, a.reduction, a.dim);
      return {z, kl};
    }
    case Call::kSampleAndKlGenerator: {
      VAE_FUSED_OP(reparameterize_kl_generator, "reparameterize_kl", "generator");
      auto [z, kl, key] = op(*q.mu, *q.logvar, a.generator, a.reduction, a.dim);
      return {z, kl, key};
    }
    case Call::kMoments: {
      VAE_FUSED_OP(reparameterize_kl_moments, "reparameterize_kl_moments", "");
      auto [z, kl] = op(*q.h, q.packed_dim, eps, a.key, a.reduction, a.dim);
      return {z, kl};
    }
    case Call::kMomentsGenerator: {
      VAE_FUSED_OP(reparameterize_kl_moments_generator, "reparameterize_kl_moments", "generator");
      auto [z, kl, key] = op(*q.h, q.packed_dim, a.generator, a.reduction, a.dim);
      return {z, kl, key};
    }
    case Call::kSample: {
      VAE_FUSED_OP(reparameterize, "reparameterize", "");
      return {op(*q.mu, *q.logvar, eps, a.key)};
    }
    case Call::kSampleGenerator: {
      VAE_FUSED_OP(reparameterize_generator, "reparameterize", "generator");
      auto [z, key] = op(*q.mu, *q.logvar, a.generator);
      return {z, key};
    }
    default: {
      VAE_FUSED_OP(gaussian_kl, "gaussian_kl", "");
      return {op(*q.mu, *q.logvar, a.reduction, a.dim)};
    }
  }
}

// The gradients in differentiable operators, for a backward that is itself differentiated. The
// formulas are the adjoints of csrc/math/gaussian.h, in the kernels' arithmetic and rounded once,
// as there; eps is the sample of N(0, 1) of the same key.
variable_list differentiable_backward(const Tensor& grad_z, const Tensor& grad_kl,
                                      const Tensor& mu_in, const Tensor& logvar_in,
                                      const Tensor& eps_in, const OptionalTensor& key,
                                      const Reduction& reduction) {
  const at::ScalarType wide = kl_dtype(mu_in), narrow = mu_in.scalar_type();
  const Tensor mu = mu_in.to(wide), logvar = logvar_in.to(wide);
  Tensor grad_mu = at::zeros_like(mu), grad_logvar = at::zeros_like(mu), grad_eps;
  if (grad_z.defined()) {
    const Tensor gz = grad_z.to(wide);
    const Tensor grad_noise = gz * at::exp(0.5 * logvar);
    Tensor eps;
    if (eps_in.defined()) {
      eps = eps_in.to(wide);
      grad_eps = grad_noise.to(narrow);
    } else {
      VAE_FUSED_OP(reparameterize, "reparameterize", "");
      const Tensor zeros = at::zeros_like(mu.detach());
      eps = op(zeros, zeros, std::nullopt, key);
    }
    grad_mu = grad_mu + gz;
    grad_logvar = grad_logvar + 0.5 * grad_noise * eps;
  }
  if (grad_kl.defined()) {
    Tensor g = grad_kl * reduction.scale(mu);
    for (int64_t d = 0; d < mu.dim(); ++d) {
      if (reduction.summed[d]) g = g.unsqueeze(d);
    }
    grad_mu = grad_mu + g * mu;
    grad_logvar = grad_logvar + 0.5 * g * at::expm1(logvar);
  }
  return {grad_mu.to(narrow), grad_logvar.to(narrow), grad_eps};
}

class Latent : public torch::autograd::Function<Latent> {
 public:
  // Autograd sees the tensors that are there: mu and logvar, or h; then eps.
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& mu,
                               const OptionalTensor& logvar, const OptionalTensor& h,
                               const OptionalTensor& eps, int64_t packed_dim, const Arguments& a) {
    at::AutoDispatchBelowADInplaceOrView guard;
    variable_list out = run({mu, logvar, h, packed_dim}, eps, a);
    Tensor key = a.key.value_or(Tensor());
    if (reserves_key(a.call)) {
      key = out.back();
      ctx->mark_non_differentiable({key});
    }
    ctx->set_materialize_grads(false);
    const auto saved = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
    ctx->save_for_backward({saved(mu), saved(logvar), saved(h), saved(eps), key});
    ctx->saved_data["call"] = static_cast<int64_t>(a.call);
    ctx->saved_data["packed_dim"] = packed_dim;
    ctx->saved_data["reduction"] = std::string(a.reduction);
    if (a.dim.has_value()) ctx->saved_data["dim"] = a.dim->vec();
    return out;
  }

  // mu, logvar, h, eps, packed_dim, arguments
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &h = saved[2], &eps = saved[3];
    const auto call = static_cast<Call>(ctx->saved_data["call"].toInt());
    const int64_t packed_dim = ctx->saved_data["packed_dim"].toInt();
    Tensor grad_z = call == Call::kKl ? Tensor() : grads[0];
    // An embedding's gradient of z, say, is sparse.
    if (grad_z.defined() && grad_z.layout() != at::kStrided) grad_z = grad_z.to_dense();
    const bool sampled_alone = call == Call::kSample || call == Call::kSampleGenerator;
    const Tensor grad_kl = call == Call::kKl ? grads[0] : sampled_alone ? Tensor() : grads[1];
    if (!grad_z.defined() && !grad_kl.defined()) return variable_list(6);

    const std::string reduction = ctx->saved_data["reduction"].toStringRef();
    std::optional<std::vector<int64_t>> dims;
    if (const auto it = ctx->saved_data.find("dim"); it != ctx->saved_data.end()) {
      dims = it->second.toIntVector();
    }
    const auto dim = dims ? at::OptionalIntArrayRef(*dims) : at::OptionalIntArrayRef();
    const auto optional = [](const Tensor& t) {
      return t.defined() ? OptionalTensor(t) : std::nullopt;
    };
    const OptionalTensor key = optional(saved[4]);
    const bool packed = is_packed(call);
    if (at::GradMode::is_enabled()) {
      const auto [mu, logvar] = packed ? unpack(h, packed_dim) : std::pair(saved[0], saved[1]);
      variable_list grad = differentiable_backward(grad_z, grad_kl, mu, logvar, eps, key,
                                                   parse_reduction(reduction, dim, mu.dim()));
      if (!packed) return {grad[0], grad[1], Tensor(), grad[2], Tensor(), Tensor()};
      const Tensor grad_h = at::cat({grad[0], grad[1]}, packed_dim);
      return {Tensor(), Tensor(), grad_h, grad[2], Tensor(), Tensor()};
    }
    const bool wants_eps =
        eps.defined() && grad_z.defined() && ctx->needs_input_grad(packed ? 1 : 2);
    if (packed) {
      VAE_FUSED_OP(reparameterize_kl_moments_backward, "reparameterize_kl_moments_backward", "");
      auto [grad_h, grad_eps] =
          op(optional(grad_z), optional(grad_kl), h, packed_dim, optional(eps), key, reduction, dim,
             std::array<bool, 2>{ctx->needs_input_grad(0), wants_eps});
      return {Tensor(), Tensor(), grad_h, grad_eps, Tensor(), Tensor()};
    }
    VAE_FUSED_OP(reparameterize_kl_backward, "reparameterize_kl_backward", "");
    auto [grad_mu, grad_logvar, grad_eps] =
        op(optional(grad_z), optional(grad_kl), saved[0], saved[1], optional(eps), key, reduction,
           dim, std::array<bool, 3>{ctx->needs_input_grad(0), ctx->needs_input_grad(1), wants_eps});
    return {grad_mu, grad_logvar, Tensor(), grad_eps, Tensor(), Tensor()};
  }
};

variable_list apply(const Posterior& q, const OptionalTensor& eps, const Arguments& a) {
  // A forward-mode tangent goes the same way: the node refuses it, where running on would drop it.
  const auto differentiable = [](const OptionalTensor& t) {
    return t && ((at::GradMode::is_enabled() && t->requires_grad()) ||
                 t->_fw_grad(/*level=*/0).defined());
  };
  const bool record = differentiable(q.mu) || differentiable(q.logvar) || differentiable(q.h) ||
                      differentiable(eps);
  if (record) return Latent::apply(q.mu, q.logvar, q.h, eps, q.packed_dim, a);
  at::AutoDispatchBelowADInplaceOrView guard;
  return run(q, eps, a);
}

}  // namespace

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mu, const Tensor& logvar,
                                             const OptionalTensor& eps, const OptionalTensor& key,
                                             std::string_view reduction,
                                             at::OptionalIntArrayRef dim) {
  const auto out =
      apply({mu, logvar}, eps, {Call::kSampleAndKl, key, std::nullopt, reduction, dim});
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_generator(const Tensor& mu,
                                                               const Tensor& logvar,
                                                               OptionalGenerator generator,
                                                               std::string_view reduction,
                                                               at::OptionalIntArrayRef dim) {
  const auto out = apply({mu, logvar}, std::nullopt,
                         {Call::kSampleAndKlGenerator, std::nullopt, generator, reduction, dim});
  return {out[0], out[1], out[2]};
}

std::tuple<Tensor, Tensor> reparameterize_kl_moments(const Tensor& h, int64_t packed_dim,
                                                     const OptionalTensor& eps,
                                                     const OptionalTensor& key,
                                                     std::string_view reduction,
                                                     at::OptionalIntArrayRef dim) {
  const auto out = apply({std::nullopt, std::nullopt, h, packed_dim}, eps,
                         {Call::kMoments, key, std::nullopt, reduction, dim});
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_moments_generator(
    const Tensor& h, int64_t packed_dim, OptionalGenerator generator, std::string_view reduction,
    at::OptionalIntArrayRef dim) {
  const auto out = apply({std::nullopt, std::nullopt, h, packed_dim}, std::nullopt,
                         {Call::kMomentsGenerator, std::nullopt, generator, reduction, dim});
  return {out[0], out[1], out[2]};
}

Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const OptionalTensor& eps,
                      const OptionalTensor& key) {
  return apply({mu, logvar}, eps, {Call::kSample, key})[0];
}

std::tuple<Tensor, Tensor> reparameterize_generator(const Tensor& mu, const Tensor& logvar,
                                                    OptionalGenerator generator) {
  const auto out =
      apply({mu, logvar}, std::nullopt, {Call::kSampleGenerator, std::nullopt, generator});
  return {out[0], out[1]};
}

Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, std::string_view reduction,
                   at::OptionalIntArrayRef dim) {
  return apply({mu, logvar}, std::nullopt,
               {Call::kKl, std::nullopt, std::nullopt, reduction, dim})[0];
}

}  // namespace vae_fused::autograd
