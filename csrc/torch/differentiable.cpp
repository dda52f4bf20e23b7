#include "torch/differentiable.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/hypot.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "math/gaussian.h"
#include "torch/dispatch.h"

namespace vae_fused {
namespace {

using math::ScaleBase;

// math::Scale and the functions of csrc/math/scale.h, on tensors.
struct Scale {
  Tensor sigma, x, dsigma, dx;
};

struct Limited {
  Tensor x, dx;
};

// The prior's mean, 1 / tau and ln tau^2.
struct Units {
  Tensor mean, precision, x;
};

// math::Relative, and the gradient of the KL.
struct Relative {
  Tensor d, h, grad;
};

// sech^2 = 4 s / (1 + s)^2, s = e^-2|u|: 1 - tanh^2 cancels.
Limited soft_clamp(const Tensor& raw, double c) {
  const Tensor u = raw / c, s = at::exp(-2.0 * at::abs(u)), s1 = 1.0 + s;
  return {c * at::tanh(u), 4.0 * s / (s1 * s1)};
}

Limited limit(const math::ScaleOptions<double>& o, const Tensor& raw) {
  Limited c{raw, at::ones_like(raw)};
  if (o.soft_clamp != 0) {
    c = soft_clamp(raw, o.soft_clamp);
  } else if (std::isfinite(o.low) || std::isfinite(o.high)) {
    // Not at::clamp, whose gradient at the bounds is 0 since torch 2.14.
    const Tensor below = raw<o.low, above = raw> o.high;
    c.x = at::where(below, o.low, at::where(above, o.high, raw));
    c.dx = at::where(below.logical_or(above), 0.0, c.dx);
  }
  Tensor t = o.gain * c.x + o.shift;
  if (o.base == ScaleBase::kIdentity || o.base == ScaleBase::kSqrt) {
    t = t + o.root_floor;  // NaN by a product, for the gradient to be, too
    t = t * at::where(t >= 0, at::ones_like(t), math::kNaN<double>);
  }
  return {t, o.gain * c.dx};
}

// math::chain. Where inner happens to be 0 it may have a derivative, which goes on.
Tensor chain(const Tensor& outer, const Tensor& inner) {
  return at::where((inner == 0.0).logical_and(outer.isfinite().logical_not()), 0.0, outer) * inner;
}

Scale scale_base(ScaleBase base, const Tensor& x) {
  switch (base) {
    case ScaleBase::kExp: {
      const Tensor sigma = at::exp(x);
      return {sigma, 2.0 * x, sigma, at::full_like(x, 2.0)};
    }
    case ScaleBase::kIdentity: {
      const Tensor log_x = at::log(x);
      return {x, 2.0 * log_x, at::where(x.isnan(), x, 1.0), 2.0 * at::reciprocal(x)};
    }
    case ScaleBase::kSqrt: {
      const Tensor sigma = at::sqrt(x);
      return {sigma, at::log(x), 0.5 * at::reciprocal(sigma), at::reciprocal(x)};
    }
    case ScaleBase::kSoftplus: {
      // Two branches, each fed where it holds: the other's gradient would be 0 * inf.
      const Tensor tiny = x < (x.scalar_type() == at::kDouble ? -37.0 : -16.0);
      const Tensor safe = at::where(tiny, 0.0, x), e = at::exp(at::where(tiny, x, 0.0));
      const Tensor sigma = at::softplus(x, 1.0, 40.0), s = at::sigmoid(x);
      const Tensor safe_sigma = at::softplus(safe, 1.0, 40.0);
      return {sigma, 2.0 * at::where(tiny, x - 0.5 * e, at::log(safe_sigma)), s,
              at::where(tiny, 2.0 - e, 2.0 * at::sigmoid(safe) / safe_sigma)};
    }
    default: {
      const Tensor s = at::sigmoid(x), other = at::sigmoid(-x);
      return {s, 2.0 * at::log_sigmoid(x), s * other, 2.0 * other};
    }
  }
}

Scale scale_of(const math::ScaleOptions<double>& o, const Tensor& raw) {
  const Limited limited = limit(o, raw);
  Scale s = scale_base(o.base, limited.x);
  s = {o.unit * s.sigma, s.x + o.log_unit_squared, chain(o.unit * s.dsigma, limited.dx),
       chain(s.dx, limited.dx)};
  if (o.var_floor == 0 && o.std_floor == 0) return s;
  const bool rooted = o.var_floor != 0;
  const Tensor root =
      rooted ? at::hypot(s.sigma, at::full_like(s.sigma, std::sqrt(o.var_floor))) : s.sigma;
  const Tensor sigma = root + o.std_floor;
  const Tensor dsigma = rooted ? chain(s.sigma / root, s.dsigma) : s.dsigma;
  return {sigma, 2.0 * at::log(sigma), dsigma, chain(2.0 * at::reciprocal(sigma), dsigma)};
}

double smallest(at::ScalarType type) {
  return type == at::kDouble ? math::kSmallest<double> : math::kSmallest<float>;
}

// The samples' gradients add up.
Tensor sum_samples(Tensor t, const Tensor& mu) {
  while (t.dim() > mu.dim()) t = t.sum(0);
  return t;
}

}  // namespace

bool is_differentiable(const Tensor& t) {
  return (at::GradMode::is_enabled() && t.requires_grad()) || t._fw_grad(/*level=*/0).defined();
}

// The formulas are the adjoints of csrc/math/gaussian.h, in the kernels' arithmetic and rounded
// once, as there; eps is the sample of N(0, 1) of the same key.
std::array<Tensor, 5> differentiable_backward(const DifferentiableCall& call,
                                              const Reduction& reduction) {
  const at::ScalarType wide = kl_dtype(call.mu), narrow = call.mu.scalar_type();
  const math::Family<double> f = parse_options(call.options);
  // What is masked may hold anything, which 0 * would keep: all of it is replaced on the way in.
  const auto in = [&](const Tensor& t, double harmless) {
    if (!t.defined()) return t;
    return call.mask.defined() ? at::where(call.mask, t.to(wide), harmless) : t.to(wide);
  };
  Limited mu{in(call.mu, 0.0), Tensor()};
  mu.dx = at::ones_like(mu.x);
  if (f.mu_soft_clamp != 0) mu = soft_clamp(mu.x, f.mu_soft_clamp);
  Scale q{at::ones_like(mu.x), at::zeros_like(mu.x), at::zeros_like(mu.x), at::zeros_like(mu.x)};
  if (call.raw.defined()) q = scale_of(f.posterior, in(call.raw, 1.0));

  const Tensor zero = at::zeros_like(mu.x);
  Tensor grad_mu = zero, grad_raw = zero, grad_eps, grad_mean, grad_prior;
  if (call.grad_z.defined()) {
    const Tensor gz = in(call.grad_z, 0.0);
    Tensor eps = in(call.eps, 0.0);
    if (eps.defined()) {
      grad_eps = f.temperature * gz * q.sigma;
    } else {
      VAE_FUSED_OP(reparameterize, "reparameterize", "");
      const Tensor zeros = at::zeros_like(gz.detach());
      eps = op(zeros, zeros, std::nullopt, call.key, std::nullopt, std::nullopt, std::nullopt);
    }
    grad_mu = grad_mu + sum_samples(gz, mu.x);
    grad_raw = grad_raw + chain(f.temperature * sum_samples(gz * eps, mu.x), q.dsigma);
  }
  if (call.grad_kl.defined()) {
    Tensor g = call.grad_kl * reduction.scale(mu.x);
    for (int64_t d = 0; d < mu.x.dim(); ++d) {
      if (reduction.summed[d]) g = g.unsqueeze(d);
    }
    if (call.mask.defined()) g = at::where(call.mask, g, 0.0);
    Scale p;
    Units prior{in(call.prior_mean, 0.0), zero + std::min(f.prior_precision, 1.0 / smallest(wide)),
                zero + f.prior_x};
    if (!prior.mean.defined()) prior.mean = zero + f.prior_mean;
    if (call.prior_raw.defined()) {
      p = scale_of(f.prior, in(call.prior_raw, 1.0));
      prior.precision = at::reciprocal(at::clamp_min(p.sigma, smallest(wide)));
      prior.x = p.x;
    }
    const auto relative = [&](const Tensor& mean, const Tensor& x, const Units& of) -> Relative {
      const Tensor d = (mean - of.mean) * of.precision, r = x - of.x;
      const Tensor h = f.linear ? at::full_like(r, -1.0) : at::expm1(r);
      if (!(f.free_bits > 0)) return {d, h, g};
      return {d, h, at::where(0.5 * (d * d + h - r) < f.free_bits, 0.0, g)};
    };
    // Balanced, there is a KL for either Gaussian, in which the other is constant.
    const bool balanced = f.to_posterior != 1 || f.to_prior != 1;
    const auto fixed = [&](const Tensor& t) { return balanced ? t.detach() : t; };
    const Tensor prior_precision = fixed(prior.precision);
    const Relative of_q = relative(mu.x, q.x, {fixed(prior.mean), prior_precision, fixed(prior.x)});
    grad_mu = grad_mu + f.to_posterior * of_q.grad * of_q.d * prior_precision;
    grad_raw = grad_raw + chain(0.5 * f.to_posterior * of_q.grad * of_q.h, q.dx);
    const Relative of_p = balanced ? relative(mu.x.detach(), q.x.detach(), prior) : of_q;
    const Tensor toward_p = f.to_prior * of_p.grad;
    if (call.prior_mean.defined()) grad_mean = -toward_p * of_p.d * prior.precision;
    if (call.prior_raw.defined()) {
      grad_prior = chain(-0.5 * toward_p * (of_p.h + of_p.d * of_p.d), p.dx);
    }
  }
  const auto out = [&](const Tensor& t) {
    if (!t.defined()) return t;
    return (call.mask.defined() ? at::where(call.mask, t, 0.0) : t).to(narrow);
  };
  return {out(grad_mu * mu.dx), call.raw.defined() ? out(grad_raw) : Tensor(), out(grad_eps),
          out(grad_mean), out(grad_prior)};
}

}  // namespace vae_fused
