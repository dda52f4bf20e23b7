// One autograd node for every operator: it saves its inputs and the noise's origin (the key, or the
// explicit eps), nothing tensor-sized of its own, and its backward is one launch.
#include <ATen/ops/cat.h>

#include "torch/node.h"

namespace vae_fused::autograd {
namespace {

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

bool is_sample(Call call) { return call == Call::kSample || call == Call::kSampleGenerator; }
bool produces_both(Call call) { return !is_sample(call) && call != Call::kKl; }

// The tensors that autograd sees. `h` instead of mu and raw where the call is packed.
struct Inputs {
  OptionalTensor mu = std::nullopt, raw = std::nullopt, h = std::nullopt, eps = std::nullopt,
                 prior_mean = std::nullopt, prior_raw = std::nullopt;
};

struct Arguments {
  Call call;
  OptionalTensor key = std::nullopt;
  OptionalGenerator generator = std::nullopt;
  std::string_view reduction = "sum";
  at::OptionalIntArrayRef dim = std::nullopt;
  OptionalTensor mask = std::nullopt;
  OptionList options = std::nullopt;
  at::OptionalSymIntArrayRef sample_shape = std::nullopt;
  int64_t packed_dim = 0;
};

variable_list run(const Inputs& q, const Arguments& a) {
  switch (a.call) {
    case Call::kSampleAndKl: {
      VAE_FUSED_OP(reparameterize_kl, "reparameterize_kl", "");
      auto [z, kl] = op(*q.mu, *q.raw, q.eps, a.key, a.reduction, a.dim, q.prior_mean, q.prior_raw,
                        a.mask, a.options, a.sample_shape);
      return {z, kl};
    }
    case Call::kSampleAndKlGenerator: {
      VAE_FUSED_OP(reparameterize_kl_generator, "reparameterize_kl", "generator");
      auto [z, kl, key] = op(*q.mu, *q.raw, a.generator, a.reduction, a.dim, q.prior_mean,
                             q.prior_raw, a.mask, a.options, a.sample_shape);
      return {z, kl, key};
    }
    case Call::kMoments: {
      VAE_FUSED_OP(reparameterize_kl_moments, "reparameterize_kl_moments", "");
      auto [z, kl] = op(*q.h, a.packed_dim, q.eps, a.key, a.reduction, a.dim, q.prior_mean,
                        q.prior_raw, a.mask, a.options, a.sample_shape);
      return {z, kl};
    }
    case Call::kMomentsGenerator: {
      VAE_FUSED_OP(reparameterize_kl_moments_generator, "reparameterize_kl_moments", "generator");
      auto [z, kl, key] = op(*q.h, a.packed_dim, a.generator, a.reduction, a.dim, q.prior_mean,
                             q.prior_raw, a.mask, a.options, a.sample_shape);
      return {z, kl, key};
    }
    case Call::kSample: {
      VAE_FUSED_OP(reparameterize, "reparameterize", "");
      return {op(*q.mu, *q.raw, q.eps, a.key, a.mask, a.options, a.sample_shape)};
    }
    case Call::kSampleGenerator: {
      VAE_FUSED_OP(reparameterize_generator, "reparameterize", "generator");
      auto [z, key] = op(*q.mu, *q.raw, a.generator, a.mask, a.options, a.sample_shape);
      return {z, key};
    }
    default: {
      VAE_FUSED_OP(gaussian_kl, "gaussian_kl", "");
      return {op(*q.mu, q.raw, a.reduction, a.dim, q.prior_mean, q.prior_raw, a.mask, a.options)};
    }
  }
}

class Latent : public torch::autograd::Function<Latent> {
 public:
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& mu,
                               const OptionalTensor& raw, const OptionalTensor& h,
                               const OptionalTensor& eps, const OptionalTensor& prior_mean,
                               const OptionalTensor& prior_raw, const Arguments& a) {
    at::AutoDispatchBelowADInplaceOrView guard;
    variable_list out = run({mu, raw, h, eps, prior_mean, prior_raw}, a);
    const Tensor key = reserves_key(a.call) ? out.back() : a.key.value_or(Tensor());
    // A key is of integers, which need no gradient. What depends on nothing that has a gradient
    // needs none either: z where only the prior is learned, so that a decoder does not send one
    // back, or the KL where only eps is.
    variable_list constants;
    const auto any = [](auto&&... t) { return ((t && t->requires_grad()) || ...); };
    if (produces_both(a.call) && !any(mu, raw, h)) {
      if (!any(eps)) constants.push_back(out[0]);
      if (!any(prior_mean, prior_raw)) constants.push_back(out[1]);
    }
    ctx->mark_non_differentiable(constants);
    ctx->set_materialize_grads(false);
    const auto saved = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
    ctx->save_for_backward({saved(mu), saved(raw), saved(h), saved(eps), saved(prior_mean),
                            saved(prior_raw), saved(a.mask), key});
    Numbers::save(ctx, a.reduction, a.options);
    ctx->saved_data["call"] = static_cast<int64_t>(a.call);
    if (is_packed(a.call)) ctx->saved_data["packed_dim"] = a.packed_dim;
    if (a.dim.has_value()) ctx->saved_data["dim"] = a.dim->vec();
    return out;
  }

  // mu, raw, h, eps, prior_mean, prior_raw, arguments
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto call = static_cast<Call>(ctx->saved_data["call"].toInt());
    const OptionalTensor grad_z = call == Call::kKl ? std::nullopt : dense(grads[0]);
    const OptionalTensor grad_kl = call == Call::kKl ? optional(grads[0])
                                   : is_sample(call) ? std::nullopt
                                                     : optional(grads[1]);
    if (!grad_z && !grad_kl) return variable_list(7);

    const bool packed = is_packed(call);
    const int64_t packed_dim = packed ? ctx->saved_data["packed_dim"].toInt() : 0;
    const Numbers numbers(ctx);
    const OptionList options = numbers.options;
    std::optional<std::vector<int64_t>> dims;
    if (const auto it = ctx->saved_data.find("dim"); it != ctx->saved_data.end()) {
      dims = it->second.toIntVector();
    }
    const auto dim = dims ? at::OptionalIntArrayRef(*dims) : at::OptionalIntArrayRef();
    if (at::GradMode::is_enabled()) {
      const auto [mu, raw] = packed ? unpack(saved[2], packed_dim) : std::pair(saved[0], saved[1]);
      auto [grad_mu, grad_raw, grad_eps, grad_mean, grad_prior] =
          differentiable_backward({grad_z.value_or(Tensor()), grad_kl.value_or(Tensor()), mu, raw,
                                   saved[3], saved[7], saved[4], saved[5], saved[6], options},
                                  parse_reduction(numbers.reduction, dim, mu.dim()));
      if (!packed) return {grad_mu, grad_raw, Tensor(), grad_eps, grad_mean, grad_prior, Tensor()};
      const Tensor grad_h = at::cat({grad_mu, grad_raw}, packed_dim);
      return {Tensor(), Tensor(), grad_h, grad_eps, grad_mean, grad_prior, Tensor()};
    }

    // Nothing is recorded, and autograd's fallback would box the arguments to find that out.
    at::AutoDispatchBelowADInplaceOrView guard;
    const OptionalTensor eps = optional(saved[3]), prior_mean = optional(saved[4]),
                         prior_raw = optional(saved[5]), mask = optional(saved[6]),
                         key = optional(saved[7]);
    // Autograd counts the inputs that are there.
    size_t next = 0;
    const auto wants = [&](const Tensor& t) {
      return t.defined() && ctx->needs_input_grad(next++);
    };
    const bool wants_mu = wants(saved[0]), wants_raw = wants(saved[1]), wants_h = wants(saved[2]);
    const bool wants_eps = wants(saved[3]) && grad_z;
    const bool wants_mean = wants(saved[4]) && grad_kl;
    const bool wants_prior = wants(saved[5]) && grad_kl;
    if (packed) {
      VAE_FUSED_OP(reparameterize_kl_moments_backward, "reparameterize_kl_moments_backward", "");
      auto [grad_h, grad_eps, grad_mean, grad_prior] =
          op(grad_z, grad_kl, saved[2], packed_dim, eps, key, numbers.reduction, dim, prior_mean,
             prior_raw, mask, options,
             std::array<bool, 4>{wants_h, wants_eps, wants_mean, wants_prior});
      return {Tensor(), Tensor(), grad_h, grad_eps, grad_mean, grad_prior, Tensor()};
    }
    VAE_FUSED_OP(reparameterize_kl_backward, "reparameterize_kl_backward", "");
    auto [grad_mu, grad_raw, grad_eps, grad_mean, grad_prior] =
        op(grad_z, grad_kl, saved[0], optional(saved[1]), eps, key, numbers.reduction, dim,
           prior_mean, prior_raw, mask, options,
           std::array<bool, 5>{wants_mu, wants_raw, wants_eps, wants_mean, wants_prior});
    return {grad_mu, grad_raw, Tensor(), grad_eps, grad_mean, grad_prior, Tensor()};
  }
};

variable_list apply(const Inputs& q, const Arguments& a) {
  const auto any = [](auto&&... t) { return ((t && is_differentiable(*t)) || ...); };
  if (any(q.mu, q.raw, q.h, q.eps, q.prior_mean, q.prior_raw)) {
    return Latent::apply(q.mu, q.raw, q.h, q.eps, q.prior_mean, q.prior_raw, a);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return run(q, a);
}

}  // namespace

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE,
                                             VAE_FUSED_REDUCTION, VAE_FUSED_FAMILY,
                                             VAE_FUSED_SAMPLES) {
  const auto out =
      apply({mu, raw, std::nullopt, eps, prior_mean, prior_raw},
            {Call::kSampleAndKl, key, std::nullopt, reduction, dim, mask, options, sample_shape});
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_generator(const Tensor& mu, const Tensor& raw,
                                                               OptionalGenerator generator,
                                                               VAE_FUSED_REDUCTION,
                                                               VAE_FUSED_FAMILY,
                                                               VAE_FUSED_SAMPLES) {
  const auto out = apply({mu, raw, std::nullopt, std::nullopt, prior_mean, prior_raw},
                         {Call::kSampleAndKlGenerator, std::nullopt, generator, reduction, dim,
                          mask, options, sample_shape});
  return {out[0], out[1], out[2]};
}

std::tuple<Tensor, Tensor> reparameterize_kl_moments(const Tensor& h, int64_t packed_dim,
                                                     VAE_FUSED_NOISE, VAE_FUSED_REDUCTION,
                                                     VAE_FUSED_FAMILY, VAE_FUSED_SAMPLES) {
  const auto out = apply(
      {std::nullopt, std::nullopt, h, eps, prior_mean, prior_raw},
      {Call::kMoments, key, std::nullopt, reduction, dim, mask, options, sample_shape, packed_dim});
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_moments_generator(
    const Tensor& h, int64_t packed_dim, OptionalGenerator generator, VAE_FUSED_REDUCTION,
    VAE_FUSED_FAMILY, VAE_FUSED_SAMPLES) {
  const auto out = apply({std::nullopt, std::nullopt, h, std::nullopt, prior_mean, prior_raw},
                         {Call::kMomentsGenerator, std::nullopt, generator, reduction, dim, mask,
                          options, sample_shape, packed_dim});
  return {out[0], out[1], out[2]};
}

Tensor reparameterize(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE, VAE_FUSED_OPTIONS,
                      VAE_FUSED_SAMPLES) {
  return apply({mu, raw, std::nullopt, eps}, {Call::kSample, key, std::nullopt, "sum", std::nullopt,
                                              mask, options, sample_shape})[0];
}

std::tuple<Tensor, Tensor> reparameterize_generator(const Tensor& mu, const Tensor& raw,
                                                    OptionalGenerator generator, VAE_FUSED_OPTIONS,
                                                    VAE_FUSED_SAMPLES) {
  const auto out = apply({mu, raw}, {Call::kSampleGenerator, std::nullopt, generator, "sum",
                                     std::nullopt, mask, options, sample_shape});
  return {out[0], out[1]};
}

Tensor gaussian_kl(const Tensor& mu, const OptionalTensor& raw, VAE_FUSED_REDUCTION,
                   VAE_FUSED_FAMILY) {
  return apply({mu, raw, std::nullopt, std::nullopt, prior_mean, prior_raw},
               {Call::kKl, std::nullopt, std::nullopt, reduction, dim, mask, options})[0];
}

}  // namespace vae_fused::autograd
