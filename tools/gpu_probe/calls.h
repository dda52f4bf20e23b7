// The tensors of one call, as parameters of the device's entry points or of the CPU kernels, which
// are the oracle. The oracle computes 16-bit calls in float from the same values, so that only the
// device rounds.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "cases.h"

namespace vae_fused::probe {

struct Faults {
  bool noise = false;    // the device starts one block of noise too far
  bool variant = false;  // a round key of the variants is wrong
};

inline void serial_for(int64_t n, int64_t, cpu::Body body, void* context) { body(context, 0, n); }

inline math::Family<double> family_of(const Request& request) {
  math::Family<double> family;
  if (request.clamped) {
    family.posterior.low = -0.5;
    family.posterior.high = 0.25;
  }
  if (request.general) {
    family.posterior.base = math::ScaleBase::kSoftplus;
    family.posterior.gain = 1;
    family.posterior.std_floor = 0.1;
    family.temperature = 0.7;
  }
  if (request.free_bits) {
    family.free_bits = 0.25;
    family.to_posterior = 0.2;
    family.to_prior = 0.8;
  }
  return family;
}

// A key that kernels read from memory: once on the device and once on the host.
class PointedKey {
 public:
  PointedKey() : memory_(sizeof words_) { memory_.upload(words_); }
  const uint64_t* data(bool on_device) const {
    return on_device ? static_cast<const uint64_t*>(memory_.data()) : words_;
  }

 private:
  uint64_t words_[2] = {0x123456789ABCDEFu, 40};
  Memory memory_;
};

template <typename S>
class Call {
 public:
  using O = math::arithmetic_t<S>;  // the oracle's type, also of sums
  using Tensor = Twin<S, O>;

  Call(const Case& c, const Faults& faults) : case_(c), faults_(faults) {
    const Request& r = c.request;
    mu_ = input(1);
    raw_ = input(2);
    if (r.explicit_noise) eps_ = input(3, r.samples);
    if (!r.general) return;
    prior_mean_ = input(5);
    prior_raw_ = input(6);
    mask_ = std::make_unique<Twin<uint8_t, uint8_t>>(c.shape, c.shape.layout, 1);
  }

  ForwardParams forward(bool on_device) {
    const Request& r = case_.request;
    if (r.sample && !z_) z_ = output(r.samples);
    ForwardParams p;
    common(p, on_device);
    std::vector<Binding> bindings = gaussians(p.of, on_device);
    bind(bindings, eps_, p.eps, on_device);
    bind(bindings, z_, p.z, on_device);
    space(bindings, p.space);
    if (eps_) p.eps.step = eps_->step();
    if (z_) p.z.step = z_->step();
    if (!r.kl) return p;
    if (!kl_) kl_ = rows(p.space.rows, 0);
    p.kl = kl_->data(on_device);
    if (p.space.tiles_per_row > 1) p.partials = scratch(p.space.tiles, on_device);
    return p;
  }

  BackwardParams backward(bool on_device) {
    const Request& r = case_.request;
    if (!grad_mu_) {
      if (r.sample) grad_z_ = input(4, r.samples);
      grad_mu_ = output();
      grad_raw_ = output();
      if (eps_ && grad_z_) grad_eps_ = output(r.samples);
      if (prior_mean_) grad_mean_ = output();
      if (prior_raw_) grad_prior_raw_ = output();
    }
    BackwardParams p;
    common(p, on_device);
    std::vector<Binding> bindings = gaussians(p.of, on_device);
    bind(bindings, eps_, p.eps, on_device);
    bind(bindings, grad_z_, p.grad_z, on_device);
    bind(bindings, grad_mu_, p.grad_mu, on_device);
    bind(bindings, grad_raw_, p.grad_raw, on_device);
    bind(bindings, grad_eps_, p.grad_eps, on_device);
    bind(bindings, grad_mean_, p.grad_prior_mean, on_device);
    bind(bindings, grad_prior_raw_, p.grad_prior_raw, on_device);
    space(bindings, p.space);
    if (eps_) p.eps.step = eps_->step();
    if (grad_z_) p.grad_z.step = grad_z_->step();
    if (grad_eps_) p.grad_eps.step = grad_eps_->step();
    if (!r.kl) return p;
    if (!grad_kl_) grad_kl_ = rows(r.one_grad_kl ? 1 : p.space.rows, 7);
    p.grad_kl = grad_kl_->data(on_device);
    p.grad_kl_stride = r.one_grad_kl ? 0 : 1;
    return p;
  }

  // Calls visit(name, worst) for each output that exists.
  template <typename Visit>
  void outputs(const Visit& visit) const {
    if (z_) visit("z", z_->compare(kTolerance<S>));
    if (kl_) visit("kl", kl_->compare(kKlTolerance<S>));
    if (grad_mu_) visit("grad_mu", grad_mu_->compare(kTolerance<S>));
    if (grad_raw_) visit("grad_raw", grad_raw_->compare(kTolerance<S>));
    if (grad_eps_) visit("grad_eps", grad_eps_->compare(kTolerance<S>));
    if (grad_mean_) visit("grad_prior_mean", grad_mean_->compare(kTolerance<S>));
    if (grad_prior_raw_) visit("grad_prior_raw", grad_prior_raw_->compare(kTolerance<S>));
  }

 private:
  template <typename T>
  using Maybe = std::unique_ptr<T>;

  Maybe<Tensor> input(uint64_t seed, int64_t samples = 1) const {
    return std::make_unique<Tensor>(case_.shape, case_.shape.layout, seed, samples);
  }
  Maybe<Tensor> output(int64_t samples = 1) const { return input(0, samples); }
  static Maybe<Twin<O, O>> rows(int64_t n, uint64_t seed) {
    return std::make_unique<Twin<O, O>>(Shape{{n}, {false}}, Layout::kContiguous, seed);
  }

  double* scratch(int64_t n, bool on_device) {
    if (!partials_) {
      const Shape shape{{n}, {false}};
      partials_ = std::make_unique<Twin<double, double>>(shape, Layout::kContiguous, 0);
    }
    return static_cast<double*>(partials_->data(on_device));
  }

  template <class Params>
  void common(Params& p, bool on_device) {
    p.dtype = on_device ? TypeOf<S>::kDType : TypeOf<O>::kDType;
    p.kl_scale = 0.25;
    p.key.seed = 0x0123456789ABCDEFu;
    p.key.offset = 7 + (on_device && faults_.noise ? 1 : 0);
    if (case_.request.key_by_pointer) {
      p.key.seed_ptr = key_.data(on_device);
      p.key.offset_ptr = key_.data(on_device) + 1;
      p.key.offset = 8 + (on_device && faults_.noise ? 4 : 0);
      p.key.shift = 2;
    }
    p.of.family = family_of(case_.request);
    p.of.samples = case_.request.sample ? case_.request.samples : 1;
  }

  std::vector<Binding> gaussians(Gaussians& of, bool on_device) {
    std::vector<Binding> bindings;
    bind(bindings, mu_, of.mu, on_device);
    bind(bindings, raw_, of.raw, on_device);
    bind(bindings, prior_mean_, of.prior_mean, on_device);
    bind(bindings, prior_raw_, of.prior_raw, on_device);
    bind(bindings, mask_, of.mask, on_device);
    return bindings;
  }

  template <class T>
  static void bind(std::vector<Binding>& bindings, const Maybe<T>& tensor, Operand& operand,
                   bool on_device) {
    if (tensor) bindings.push_back(tensor->binding(on_device, operand));
  }

  void space(const std::vector<Binding>& bindings, Space& space) const {
    if (!make_space(case_.shape.sizes, case_.shape.dims(), bindings, space)) {
      throw std::runtime_error("too many dimensions");
    }
  }

  Case case_;
  Faults faults_;
  PointedKey key_;
  Maybe<Tensor> mu_, raw_, eps_, prior_mean_, prior_raw_, z_;
  Maybe<Tensor> grad_z_, grad_mu_, grad_raw_, grad_eps_, grad_mean_, grad_prior_raw_;
  Maybe<Twin<uint8_t, uint8_t>> mask_;
  Maybe<Twin<O, O>> kl_, grad_kl_;
  Maybe<Twin<double, double>> partials_;
};

}  // namespace vae_fused::probe
