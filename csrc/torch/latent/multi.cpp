// The operators for a list of tensors, which check their arguments, allocate results and launch
// kernels. One launch computes up to kMaxItems tensors.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <c10/core/DeviceGuard.h>

#include <cmath>

#include "params/latent_multi.h"
#include "torch/latent/check.h"
#include "torch/latent/ops.h"
#include "torch/launch.h"
#include "torch/rng.h"

namespace vae_fused {
namespace {

void check_length(size_t found, const char* name, size_t count) {
  TORCH_CHECK_VALUE(found == count, "vae_fused: ", name, " must have the length of mu, ", count,
                    ", got ", found);
}

// A checked list with contiguous tensors.
struct List {
  std::vector<Tensor> mu, raw;
  std::vector<Tensor> prior_mean, prior_raw;  // undefined if the prior is given by numbers
  std::vector<math::FixedPrior> prior;
  std::vector<double> weight;         // the weight of each tensor's KL
  std::vector<uint64_t> first_block;  // noise blocks before each tensor
  int64_t blocks = 0;
  double empty_kl = 0;  // the KL of the empty tensors: a sum is 0, a mean NaN, as in torch

  size_t size() const { return mu.size(); }

  List(at::TensorList mus, at::TensorList raws, const GivenPriors& priors,
       const math::LatentOptions<double>& options, std::string_view reduction) {
    TORCH_CHECK_VALUE(!mus.empty(), "vae_fused: mu must contain at least 1 tensor, got none");
    check_length(raws.size(), "raw", mus.size());
    TORCH_CHECK_VALUE(reduction == "sum" || reduction == "mean",
                      "vae_fused: reduction must be one of sum, mean, got '", reduction, "'");
    TORCH_CHECK_VALUE(!options.at_sample,
                      "vae_fused: estimator must be 'analytic' for a list, got 'sample'");
    for (size_t k = 0; k < mus.size(); ++k) {
      check_tensor(mus[k], "mu", mus[k].sym_sizes(), mus[0].scalar_type(), mus[0]);
      check_like(raws[k], "raw", mus[k]);
      mu.push_back(mus[k].contiguous());
      raw.push_back(raws[k].contiguous());
    }
    prior_mean = tensors_of(priors.mean, "prior_mean");
    prior_raw = tensors_of(priors.raw, "prior_raw");
    set_numbers(priors.numbers, options);
    if (mus[0].is_meta()) return;
    for (const Tensor& t : mu) {
      weight.push_back(reduction == "mean" ? 1.0 / static_cast<double>(t.numel()) : 1.0);
      first_block.push_back(static_cast<uint64_t>(blocks));
      blocks += noise_blocks(t);
      if (t.numel() == 0) empty_kl += 0.0 * weight.back();
    }
  }

 private:
  // Returns the tensors of the priors. A list has one entry for each item, or no entries at all.
  std::vector<Tensor> tensors_of(const OptionalTensors& given, const char* name) const {
    std::vector<Tensor> result(size());
    if (!given.empty()) check_length(given.size(), name, size());
    for (size_t k = 0; k < given.size(); ++k) {
      const OptionalTensor t = given.get(k);
      if (!t || !t->defined()) continue;
      check_like(*t, name, mu[k]);
      result[k] = t->contiguous();
    }
    return result;
  }

  // Sets the priors that are given by numbers: a mean and a raw scale for each item, or those of
  // the options.
  void set_numbers(c10::ArrayRef<double> numbers, const math::LatentOptions<double>& options) {
    TORCH_CHECK_VALUE(numbers.empty() || numbers.size() == 2 * size(),
                      "vae_fused: prior_numbers must contain ", 2 * size(),
                      " numbers, two for each tensor of mu, got ", numbers.size());
    const bool is_double = mu[0].scalar_type() == at::kDouble;
    math::FixedPrior one = {options.prior_mean, options.prior_precision, options.prior_x};
    for (size_t k = 0; k < size(); ++k) {
      if (!numbers.empty()) one = fixed_prior(options, numbers[2 * k], numbers[2 * k + 1]);
      if (!is_double) one.precision = math::representable<float>(one.precision);
      prior.push_back(one);
    }
  }
};

// Calls launch(params) for each part of the list that fits into one launch. `fill` sets the fields
// of an item that differ between forward and backward. Empty tensors are skipped.
template <typename Fill, typename Launch>
void for_each_part(const List& list, WithScalars<MultiParams>& params, const Fill& fill,
                   const Launch& launch) {
  const auto flush = [&] {
    if (params.items > 0) launch(params);
    params.items = 0;
    params.tiles = 0;
  };
  const auto data_of = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  params.dtype = dtype_of(list.mu[0]);
  for (size_t k = 0; k < list.size(); ++k) {
    if (list.mu[k].numel() == 0) continue;
    Item& item = params.item[params.items++];
    item = Item{};
    item.mu = list.mu[k].const_data_ptr();
    item.raw = list.raw[k].const_data_ptr();
    item.prior_mean = data_of(list.prior_mean[k]);
    item.prior_raw = data_of(list.prior_raw[k]);
    item.prior = list.prior[k];
    item.n = list.mu[k].numel();
    item.first_tile = params.tiles;
    item.first_block = list.first_block[k];
    item.weight = list.weight[k];
    fill(k, item);
    params.tiles += tiles_of(item.n);
    if (params.items == kMaxItems) flush();
  }
  flush();
}

struct MultiOutputs {
  std::vector<Tensor> z;
  Tensor kl, key;
};

// The samples that a forward call computes in addition to the KL: none, samples from a given key,
// or samples from a newly reserved key.
enum class Sampling { kNone, kOfKey, kOfGenerator };

MultiOutputs forward(at::TensorList mus, at::TensorList raws, Sampling sampling,
                     const OptionalTensor& key, const OptionalGenerator& generator,
                     std::string_view reduction, const GivenPriors& priors,
                     const GivenOptions& options) {
  WithScalars<MultiParams> params;
  params.options = parse_options(options.numbers);
  const List list(mus, raws, priors, params.options, reduction);
  const Tensor& first = list.mu[0];
  options.check(first);
  MultiOutputs out;
  if (sampling != Sampling::kNone) {
    for (const Tensor& t : list.mu) out.z.push_back(with_huge_pages(at::empty_like(t)));
  }
  out.kl = at::empty({}, first.options().dtype(arithmetic_dtype(first)));
  if (sampling == Sampling::kOfKey) check_key(*key, first);
  const bool reserves = sampling == Sampling::kOfGenerator;
  if (reserves) out.key = at::empty({2}, first.options().dtype(at::kUInt64));
  if (first.is_meta()) return out;

  const c10::DeviceGuard guard(first.device());
  if (list.blocks == 0) {
    out.kl.fill_(list.empty_kl);
    if (reserves) out.key.zero_();
    return out;
  }
  params.scalars = options.pointers(params.options);
  const Tensor key_in = sampling == Sampling::kOfKey ? key->contiguous() : Tensor();
  if (key_in.defined()) params.key = key_of(key_in);
  if (reserves) {
    params.key = reserve_key(generator, first.device(), list.blocks);
    params.key_out = static_cast<uint64_t*>(out.key.mutable_data_ptr());
  }
  std::vector<Tensor> parts;  // the KL of each launch
  const auto z_of = [&](size_t k, Item& item) {
    if (!out.z.empty()) item.z = out.z[k].mutable_data_ptr();
  };
  for_each_part(list, params, z_of, [&](WithScalars<MultiParams>& p) {
    const Tensor partials = at::empty({p.tiles}, first.options().dtype(at::kDouble));
    p.partials = partials.mutable_data_ptr<double>();
    parts.push_back(at::empty_like(out.kl));
    p.kl = parts.back().mutable_data_ptr();
    VAE_FUSED_LAUNCH(forward_multi, p, first.device());
  });
  out.kl = parts.size() == 1 ? parts[0] : at::stack(parts).sum();
  if (std::isnan(list.empty_kl)) out.kl.fill_(list.empty_kl);
  return out;
}

}  // namespace

std::tuple<std::vector<Tensor>, Tensor> reparameterize_kl_multi(at::TensorList mu,
                                                                at::TensorList raw,
                                                                const Tensor& key,
                                                                std::string_view reduction,
                                                                VAE_FUSED_LIST_OPTIONS) {
  MultiOutputs out = forward(mu, raw, Sampling::kOfKey, key, std::nullopt, reduction,
                             VAE_FUSED_GIVEN_PRIORS, VAE_FUSED_GIVEN_OPTIONS);
  return {out.z, out.kl};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor> reparameterize_kl_multi_generator(
    at::TensorList mu, at::TensorList raw, OptionalGenerator generator, std::string_view reduction,
    VAE_FUSED_LIST_OPTIONS) {
  MultiOutputs out = forward(mu, raw, Sampling::kOfGenerator, std::nullopt, generator, reduction,
                             VAE_FUSED_GIVEN_PRIORS, VAE_FUSED_GIVEN_OPTIONS);
  return {out.z, out.kl, out.key};
}

Tensor gaussian_kl_multi(at::TensorList mu, at::TensorList raw, std::string_view reduction,
                         VAE_FUSED_LIST_OPTIONS) {
  return forward(mu, raw, Sampling::kNone, std::nullopt, std::nullopt, reduction,
                 VAE_FUSED_GIVEN_PRIORS, VAE_FUSED_GIVEN_OPTIONS)
      .kl;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> reparameterize_kl_multi_backward(
    const OptionalTensors& grad_z, const OptionalTensor& grad_kl, at::TensorList mu,
    at::TensorList raw, const OptionalTensor& key, std::string_view reduction,
    VAE_FUSED_LIST_OPTIONS) {
  const GivenOptions given = VAE_FUSED_GIVEN_OPTIONS;
  WithScalars<MultiParams> params;
  params.options = parse_options(given.numbers);
  const List list(mu, raw, VAE_FUSED_GIVEN_PRIORS, params.options, reduction);
  const Tensor& first = list.mu[0];
  given.check(first);
  check_length(grad_z.size(), "grad_z", list.size());
  if (key) check_key(*key, first);
  std::vector<Tensor> grad_mu, grad_raw, gz(list.size());
  for (size_t k = 0; k < list.size(); ++k) {
    grad_mu.push_back(with_huge_pages(at::empty_like(list.mu[k])));
    grad_raw.push_back(with_huge_pages(at::empty_like(list.raw[k])));
    const OptionalTensor z_grad = grad_z.get(k);
    if (!z_grad || !z_grad->defined()) continue;
    TORCH_CHECK_VALUE(key, "vae_fused: key must be given with grad_z, got none");
    check_like(*z_grad, "grad_z", list.mu[k]);
    gz[k] = z_grad->contiguous();
  }
  if (grad_kl) check_tensor(*grad_kl, "grad_kl", {}, arithmetic_dtype(first), first);
  if (first.is_meta()) return {grad_mu, grad_raw};

  const c10::DeviceGuard guard(first.device());
  const Tensor key_in = key ? key->contiguous() : Tensor();
  params.scalars = given.pointers(params.options);
  if (key_in.defined()) params.key = key_of(key_in);
  if (grad_kl) params.grad_kl = grad_kl->const_data_ptr();
  const auto grads_of = [&](size_t k, Item& item) {
    if (gz[k].defined()) item.grad_z = gz[k].const_data_ptr();
    item.grad_mu = grad_mu[k].mutable_data_ptr();
    item.grad_raw = grad_raw[k].mutable_data_ptr();
  };
  for_each_part(list, params, grads_of, [&](WithScalars<MultiParams>& p) {
    VAE_FUSED_LAUNCH(backward_multi, p, first.device());
  });
  return {grad_mu, grad_raw};
}

}  // namespace vae_fused
