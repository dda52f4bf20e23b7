// The tensors of one call, as parameters of the device's entry points or of the CPU kernels, which
// are the oracle. The oracle computes 16-bit calls in float from the same values, so that only the
// device rounds.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"

namespace vae_fused::probe {

struct Faults {
  bool noise = false;    // the device starts one block of noise too far
  bool variant = false;  // a round key of the variants is wrong
};

inline void serial_for(int64_t n, int64_t, cpu::Body body, void* context) { body(context, 0, n); }

inline math::LatentOptions<double> latent_options(const Request& request) {
  math::LatentOptions<double> options;
  if (request.clamped) {
    options.posterior.low = -0.5;
    options.posterior.high = 0.25;
  }
  if (request.general) {
    options.posterior.base = math::ScaleBase::kSoftplus;
    options.posterior.gain = 1;
    options.posterior.std_floor = 0.1;
    options.temperature = 0.7;
  }
  if (request.free_bits) {
    options.free_bits = 0.25;
    options.to_posterior = 0.2;
    options.to_prior = 0.8;
  }
  return options;
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
    input("mu", 1);
    input("raw", 2);
    if (r.explicit_noise) input("eps", 3, r.samples);
    if (!r.general) return;
    input("prior_mean", 5);
    input("prior_raw", 6);
    mask_ = std::make_unique<Twin<uint8_t, uint8_t>>(c.shape, c.shape.layout, 1);
  }

  ForwardParams forward(bool on_device) {
    const Request& r = case_.request;
    if (r.sample) output("z", r.samples);
    ForwardParams p;
    common(p, on_device);
    p.kl.factor = kKlScale;
    if (!r.kl) return p;
    if (!kl_) kl_ = rows(p.space.rows, 0);
    p.kl.data = kl_->data(on_device);
    if (p.space.tiles_per_row > 1) p.kl.partials = scratch(p.space.tiles, on_device);
    return p;
  }

  BackwardParams backward(bool on_device) {
    const Request& r = case_.request;
    if (r.sample) input("grad_z", 4, r.samples);
    output("grad_mu");
    output("grad_raw");
    if (r.explicit_noise && r.sample) output("grad_eps", r.samples);
    if (r.general) {
      output("grad_prior_mean");
      output("grad_prior_raw");
    }
    BackwardParams p;
    common(p, on_device);
    p.grad_kl.factor = kKlScale;
    if (!r.kl) return p;
    if (!grad_kl_) grad_kl_ = rows(r.one_grad_kl ? 1 : p.space.rows, 7);
    p.grad_kl.data = grad_kl_->data(on_device);
    p.grad_kl.stride = r.one_grad_kl ? 0 : 1;
    return p;
  }

  // Calls visit(name, worst) for each output that exists.
  template <typename Visit>
  void outputs(const Visit& visit) const {
    for (const std::string& name : outputs_) {
      visit(name.c_str(), tensors_.at(name)->compare(kTolerance<S>));
    }
    if (kl_) visit("kl", kl_->compare(kKlTolerance<S>));
  }

 private:
  static constexpr double kKlScale = 0.25;

  template <typename T>
  using Maybe = std::unique_ptr<T>;

  // Creates a tensor by the name of its operand, unless it exists.
  void input(const std::string& name, uint64_t seed, int64_t samples = 1) {
    Maybe<Tensor>& tensor = tensors_[name];
    if (tensor) return;
    tensor = std::make_unique<Tensor>(case_.shape, case_.shape.layout, seed, samples);
    if (seed == 0) outputs_.push_back(name);
  }
  void output(const std::string& name, int64_t samples = 1) { input(name, 0, samples); }

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
    p.key.seed = 0x0123456789ABCDEFu;
    p.key.offset = 7 + (on_device && faults_.noise ? 1 : 0);
    if (case_.request.key_by_pointer) {
      p.key.seed_ptr = key_.data(on_device);
      p.key.offset_ptr = key_.data(on_device) + 1;
      p.key.offset = 8 + (on_device && faults_.noise ? 4 : 0);
      p.key.shift = 2;
    }
    p.gaussians.options = latent_options(case_.request);
    p.gaussians.samples = case_.request.sample ? case_.request.samples : 1;
    std::vector<BoundTensor> bound_tensors;
    for_each_operand(p, [&](const OperandRef& ref) {
      if (ref.name == "mask") {
        if (mask_) bound_tensors.push_back(mask_->binding(on_device, *ref.operand));
        return;
      }
      const auto found = tensors_.find(std::string(ref.name));
      if (found == tensors_.end()) return;
      bound_tensors.push_back(found->second->binding(on_device, *ref.operand));
      if (ref.step) *ref.step = found->second->step();
    });
    if (!make_space(case_.shape.sizes, case_.shape.dims(), bound_tensors, p.space)) {
      throw std::runtime_error("too many dimensions");
    }
  }

  Case case_;
  Faults faults_;
  PointedKey key_;
  std::map<std::string, Maybe<Tensor>> tensors_;
  std::vector<std::string> outputs_;
  Maybe<Twin<uint8_t, uint8_t>> mask_;
  Maybe<Twin<O, O>> kl_, grad_kl_;
  Maybe<Twin<double, double>> partials_;
};

}  // namespace vae_fused::probe
