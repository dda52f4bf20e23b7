// One autograd node handles every differentiable operator in this file. It saves the inputs of the
// call and the source of the noise (the key or the explicit eps), and no other tensors. Its
// backward pass is one launch.
#include <array>
#include <tuple>

#include "torch/latent/ops.h"
#include "torch/latent/saved_options.h"

namespace vae_fused::autograd {
namespace {

// The operator of a call.
enum class Call {
  kSampleAndKl,
  kSampleAndKlGenerator,
  kMoments,
  kMomentsGenerator,
  kSample,
  kSampleGenerator,
  kKl
};

// The differentiable tensors. A packed call has `h` instead of mu and raw.
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
  GivenOptions options = {};
  at::OptionalSymIntArrayRef sample_shape = std::nullopt;
  int64_t packed_dim = 0;
};

// An undefined tensor is not an output of the call.
struct Outputs {
  Tensor z, kl, key;
};

// Whether a call estimates the KL from its samples.
bool depends_on_noise(const GivenOptions& options) {
  return options.numbers.has_value() && parse_options(options.numbers).at_sample;
}

Outputs run(const Inputs& q, const Arguments& a) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const GivenOptions& given = a.options;
  switch (a.call) {
    case Call::kSampleAndKl: {
      VAE_FUSED_OP(reparameterize_kl, "reparameterize_kl", "");
      auto [z, kl] = op(*q.mu, *q.raw, q.eps, a.key, a.reduction, a.dim, q.prior_mean, q.prior_raw,
                        a.mask, VAE_FUSED_OPTION_ARGUMENTS, a.sample_shape);
      return {z, kl, {}};
    }
    case Call::kSampleAndKlGenerator: {
      VAE_FUSED_OP(reparameterize_kl_generator, "reparameterize_kl", "generator");
      auto [z, kl, key] = op(*q.mu, *q.raw, a.generator, a.reduction, a.dim, q.prior_mean,
                             q.prior_raw, a.mask, VAE_FUSED_OPTION_ARGUMENTS, a.sample_shape);
      return {z, kl, key};
    }
    case Call::kMoments: {
      VAE_FUSED_OP(reparameterize_kl_moments, "reparameterize_kl_moments", "");
      auto [z, kl] = op(*q.h, a.packed_dim, q.eps, a.key, a.reduction, a.dim, q.prior_mean,
                        q.prior_raw, a.mask, VAE_FUSED_OPTION_ARGUMENTS, a.sample_shape);
      return {z, kl, {}};
    }
    case Call::kMomentsGenerator: {
      VAE_FUSED_OP(reparameterize_kl_moments_generator, "reparameterize_kl_moments", "generator");
      auto [z, kl, key] = op(*q.h, a.packed_dim, a.generator, a.reduction, a.dim, q.prior_mean,
                             q.prior_raw, a.mask, VAE_FUSED_OPTION_ARGUMENTS, a.sample_shape);
      return {z, kl, key};
    }
    case Call::kSample: {
      VAE_FUSED_OP(reparameterize, "reparameterize", "");
      return {op(*q.mu, *q.raw, q.eps, a.key, a.mask, VAE_FUSED_OPTION_ARGUMENTS, a.sample_shape),
              {},
              {}};
    }
    case Call::kSampleGenerator: {
      VAE_FUSED_OP(reparameterize_generator, "reparameterize", "generator");
      auto [z, key] =
          op(*q.mu, *q.raw, a.generator, a.mask, VAE_FUSED_OPTION_ARGUMENTS, a.sample_shape);
      return {z, {}, key};
    }
    default: {
      VAE_FUSED_OP(gaussian_kl, "gaussian_kl", "");
      return {{},
              op(*q.mu, q.raw, a.reduction, a.dim, q.prior_mean, q.prior_raw, a.mask,
                 VAE_FUSED_OPTION_ARGUMENTS),
              {}};
    }
  }
}

class LatentBackward : public SavingNode<LatentBackward> {
 public:
  static constexpr const char* kName = "LatentBackward";
  // The slots of the saved tensors. For each of the first six slots, the edge of the saved tensor
  // has the same index as the slot. The slots from kScalars on contain the options that are
  // tensors, if there are any.
  enum Slot { kMu, kRaw, kH, kEps, kPriorMean, kPriorRaw, kMask, kKey, kScalars };
  static constexpr size_t kEdges = kMask;

  LatentBackward(const Inputs& q, const Arguments& a, const Outputs& out)
      : SavingNode(kScalars + scalar_slots(a.options), a.reduction, a.dim, a.options.numbers,
                   a.packed_dim, out.z.defined(), out.kl.defined()) {
    if (needs_mean(a, out)) save(kMu, q.mu);
    save(kRaw, q.raw);
    save(kH, q.h);
    save(kEps, q.eps);
    save(kPriorMean, q.prior_mean);
    save(kPriorRaw, q.prior_raw);
    save(kMask, a.mask);
    save(kKey, a.key ? *a.key : out.key);
    save_scalars(*this, kScalars, a.options);
    set_next_edges(
        torch::autograd::collect_next_edges(q.mu, q.raw, q.h, q.eps, q.prior_mean, q.prior_raw));
  }

  // The mean is only added to a sample, so backward reads it only if there is a KL or a soft clamp.
  // A mean that is not saved may be changed in place after the call.
  static bool needs_mean(const Arguments& a, const Outputs& out) {
    if (out.kl.defined()) return true;
    return a.options.numbers.has_value() && parse_options(a.options.numbers).mu_soft_clamp != 0;
  }

  static variable_list backward(const SavedCall& call, const variable_list& grads) {
    const SavedArguments& a = call.arguments;
    variable_list result(kEdges);
    const OptionalTensor grad_z = a.has_z ? dense(grads[0]) : std::nullopt;
    const OptionalTensor grad_kl = a.has_kl ? optional(grads[a.has_z ? 1 : 0]) : std::nullopt;
    if (!grad_z && !grad_kl) return result;

    const auto saved = [&](Slot slot) { return optional(call.tensors[slot]); };
    const auto needs_grad = [&](Slot slot, bool reached = true) {
      return reached && call.needs_grad[slot];
    };
    const GivenOptions given = saved_options(call, kScalars);
    const bool eps = needs_grad(kEps, grad_z.has_value() || depends_on_noise(given));
    const bool prior_mean = needs_grad(kPriorMean, grad_kl.has_value());
    const bool prior_raw = needs_grad(kPriorRaw, grad_kl.has_value());
    const BelowAutograd guard;
    if (call.tensors[kH].defined()) {
      VAE_FUSED_OP(reparameterize_kl_moments_backward, "reparameterize_kl_moments_backward", "");
      std::tie(result[kH], result[kEps], result[kPriorMean], result[kPriorRaw]) =
          op(grad_z, grad_kl, call.tensors[kH], a.packed_dim, saved(kEps), saved(kKey), a.reduction,
             a.dim_ref(), saved(kPriorMean), saved(kPriorRaw), saved(kMask),
             VAE_FUSED_OPTION_ARGUMENTS,
             std::array<bool, 4>{needs_grad(kH), eps, prior_mean, prior_raw});
      return result;
    }
    // If the mean is not saved, raw replaces it, because it has the same shape and dtype.
    const Tensor& mean = call.tensors[call.tensors[kMu].defined() ? kMu : kRaw];
    VAE_FUSED_OP(reparameterize_kl_backward, "reparameterize_kl_backward", "");
    std::tie(result[kMu], result[kRaw], result[kEps], result[kPriorMean], result[kPriorRaw]) =
        op(grad_z, grad_kl, mean, saved(kRaw), saved(kEps), saved(kKey), a.reduction, a.dim_ref(),
           saved(kPriorMean), saved(kPriorRaw), saved(kMask), VAE_FUSED_OPTION_ARGUMENTS,
           std::array<bool, 5>{needs_grad(kMu), needs_grad(kRaw), eps, prior_mean, prior_raw});
    return result;
  }
};

Outputs apply(const Inputs& q, const Arguments& a) {
  refuse_transforms();
  for (const OptionalTensor* t : {&q.mu, &q.raw, &q.h, &q.eps, &q.prior_mean, &q.prior_raw}) {
    if (*t) refuse_tangent(**t);
  }
  refuse_gradients(a.options);
  const Outputs out = run(q, a);
  if (!at::GradMode::is_enabled()) return out;
  // An output has no gradient if none of the inputs on which it depends requires one. If only the
  // prior is learned, z has no gradient, and none is propagated back through the decoder. If only
  // eps requires a gradient, the KL has no gradient unless it is estimated from the samples.
  const bool posterior = any_requires_grad(q.mu, q.raw, q.h);
  const bool z_has_grad = posterior || any_requires_grad(q.eps);
  const bool kl_has_grad = posterior || any_requires_grad(q.prior_mean, q.prior_raw) ||
                           (any_requires_grad(q.eps) && depends_on_noise(a.options));
  if (!z_has_grad && !kl_has_grad) return out;
  const auto node = make_node<LatentBackward>(q, a, out);
  if (out.z.defined()) set_output(node, out.z, z_has_grad);
  if (out.kl.defined()) set_output(node, out.kl, kl_has_grad);
  return out;
}

}  // namespace

// Statistics have no gradient, so nothing is recorded.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> latent_stats(const Tensor& mu, const Tensor& raw,
                                                                at::IntArrayRef dim,
                                                                VAE_FUSED_PRIOR_AND_OPTIONS) {
  refuse_transforms();
  const at::AutoDispatchBelowADInplaceOrView guard;
  const GivenOptions given = VAE_FUSED_GIVEN_OPTIONS;
  VAE_FUSED_OP(latent_stats, "latent_stats", "");
  return op(mu, raw, dim, prior_mean, prior_raw, mask, VAE_FUSED_OPTION_ARGUMENTS);
}

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE,
                                             VAE_FUSED_REDUCTION, VAE_FUSED_PRIOR_AND_OPTIONS,
                                             VAE_FUSED_SAMPLES) {
  const auto out = apply({mu, raw, std::nullopt, eps, prior_mean, prior_raw},
                         {Call::kSampleAndKl, key, std::nullopt, reduction, dim, mask,
                          VAE_FUSED_GIVEN_OPTIONS, sample_shape});
  return {out.z, out.kl};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_generator(const Tensor& mu, const Tensor& raw,
                                                               OptionalGenerator generator,
                                                               VAE_FUSED_REDUCTION,
                                                               VAE_FUSED_PRIOR_AND_OPTIONS,
                                                               VAE_FUSED_SAMPLES) {
  const auto out = apply({mu, raw, std::nullopt, std::nullopt, prior_mean, prior_raw},
                         {Call::kSampleAndKlGenerator, std::nullopt, generator, reduction, dim,
                          mask, VAE_FUSED_GIVEN_OPTIONS, sample_shape});
  return {out.z, out.kl, out.key};
}

std::tuple<Tensor, Tensor> reparameterize_kl_moments(const Tensor& h, int64_t packed_dim,
                                                     VAE_FUSED_NOISE, VAE_FUSED_REDUCTION,
                                                     VAE_FUSED_PRIOR_AND_OPTIONS,
                                                     VAE_FUSED_SAMPLES) {
  const auto out = apply({std::nullopt, std::nullopt, h, eps, prior_mean, prior_raw},
                         {Call::kMoments, key, std::nullopt, reduction, dim, mask,
                          VAE_FUSED_GIVEN_OPTIONS, sample_shape, packed_dim});
  return {out.z, out.kl};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_moments_generator(
    const Tensor& h, int64_t packed_dim, OptionalGenerator generator, VAE_FUSED_REDUCTION,
    VAE_FUSED_PRIOR_AND_OPTIONS, VAE_FUSED_SAMPLES) {
  const auto out = apply({std::nullopt, std::nullopt, h, std::nullopt, prior_mean, prior_raw},
                         {Call::kMomentsGenerator, std::nullopt, generator, reduction, dim, mask,
                          VAE_FUSED_GIVEN_OPTIONS, sample_shape, packed_dim});
  return {out.z, out.kl, out.key};
}

Tensor reparameterize(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE, VAE_FUSED_OPTIONS,
                      VAE_FUSED_SAMPLES) {
  return apply({mu, raw, std::nullopt, eps}, {Call::kSample, key, std::nullopt, "sum", std::nullopt,
                                              mask, VAE_FUSED_GIVEN_OPTIONS, sample_shape})
      .z;
}

std::tuple<Tensor, Tensor> reparameterize_generator(const Tensor& mu, const Tensor& raw,
                                                    OptionalGenerator generator, VAE_FUSED_OPTIONS,
                                                    VAE_FUSED_SAMPLES) {
  const auto out = apply({mu, raw}, {Call::kSampleGenerator, std::nullopt, generator, "sum",
                                     std::nullopt, mask, VAE_FUSED_GIVEN_OPTIONS, sample_shape});
  return {out.z, out.key};
}

Tensor gaussian_kl(const Tensor& mu, const OptionalTensor& raw, VAE_FUSED_REDUCTION,
                   VAE_FUSED_PRIOR_AND_OPTIONS) {
  return apply(
             {mu, raw, std::nullopt, std::nullopt, prior_mean, prior_raw},
             {Call::kKl, std::nullopt, std::nullopt, reduction, dim, mask, VAE_FUSED_GIVEN_OPTIONS})
      .kl;
}

}  // namespace vae_fused::autograd
