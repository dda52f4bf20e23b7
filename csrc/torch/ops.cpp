// The operators: check, allocate, launch. One `forward` and one `backward` serve every overload.
//
// The checks here keep the kernels within memory, whoever calls; the messages that teach are in
// vae_fused/functional.py, which has checked the same things before.
#include "torch/ops.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#ifdef VAE_FUSED_WITH_CUDA
#include <c10/core/impl/VirtualGuardImpl.h>
#endif

#include "torch/reduction.h"
#include "torch/rng.h"

namespace vae_fused {
namespace {

// -------------------------------------------------------------------------------------------------
// check
// -------------------------------------------------------------------------------------------------

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, "vae_fused: unsupported dtype ", t.scalar_type());
  }
}

void check_shape_and_device(const Tensor& t, const char* name, const Tensor& like) {
  TORCH_CHECK_VALUE(t.sym_sizes() == like.sym_sizes(), "vae_fused: ", name, " has shape ",
                    t.sym_sizes(), ", wants ", like.sym_sizes());
  TORCH_CHECK(t.device() == like.device(), "vae_fused: ", name, " is on ", t.device(), ", mu on ",
              like.device());
}

void check_like(const Tensor& t, const char* name, const Tensor& like) {
  check_shape_and_device(t, name, like);
  TORCH_CHECK_TYPE(t.scalar_type() == like.scalar_type(), "vae_fused: ", name, " has dtype ",
                   t.scalar_type(), ", mu has ", like.scalar_type());
}

void check_key(const Tensor& key, const Tensor& mu) {
  TORCH_CHECK_TYPE(key.scalar_type() == at::kUInt64 || key.scalar_type() == at::kLong,
                   "vae_fused: key has dtype ", key.scalar_type(), ", wants uint64 or int64");
  TORCH_CHECK_VALUE(key.dim() == 1 && key.sym_size(0) == 2, "vae_fused: key has shape ",
                    key.sym_sizes(), ", wants (2,)");
  TORCH_CHECK(key.device() == mu.device(), "vae_fused: key is on ", key.device(), ", mu on ",
              mu.device());
}

// Where the noise comes from: explicit, a key, or a key to be reserved. Exactly one.
struct Noise {
  Tensor eps;
  Tensor key;
  bool reserve = false;
  OptionalGenerator generator;

  static Noise given(const OptionalTensor& eps, const OptionalTensor& key) {
    TORCH_CHECK_VALUE(eps.has_value() != key.has_value(), "vae_fused: give one of eps and key");
    Noise noise;
    if (eps) noise.eps = *eps;
    if (key) noise.key = key->contiguous();
    return noise;
  }

  static Noise reserved(const OptionalGenerator& generator) {
    Noise noise;
    noise.reserve = true;
    noise.generator = generator;
    return noise;
  }

  // `like`: z, or its gradient.
  void check(const Tensor& like) const {
    if (eps.defined()) check_like(eps, "eps", like);
    if (key.defined()) check_key(key, like);
  }
};

// The tensors of a call's Gaussians, beside mu, and its options. Undefined: absent.
struct Tensors {
  Tensor raw, prior_mean, prior_raw, mask;
  OptionList options;

  Tensors(const OptionalTensor& raw, const OptionalTensor& prior_mean,
          const OptionalTensor& prior_raw, const OptionalTensor& mask, OptionList options)
      : raw(raw.value_or(Tensor())),
        prior_mean(prior_mean.value_or(Tensor())),
        prior_raw(prior_raw.value_or(Tensor())),
        mask(mask.value_or(Tensor())),
        options(options) {}

  void check(const Tensor& mu) const {
    if (raw.defined()) check_like(raw, "raw", mu);
    if (prior_mean.defined()) check_like(prior_mean, "prior_mean", mu);
    if (prior_raw.defined()) check_like(prior_raw, "prior_raw", mu);
    if (!mask.defined()) return;
    TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, "vae_fused: mask has dtype ",
                     mask.scalar_type(), ", wants bool");
    check_shape_and_device(mask, "mask", mu);
  }

  // Whether the call is the usual one, but for the number of samples.
  bool plain() const {
    return raw.defined() && !prior_mean.defined() && !prior_raw.defined() && !mask.defined() &&
           !options.has_value();
  }
};

// -------------------------------------------------------------------------------------------------
// launch
// -------------------------------------------------------------------------------------------------

void parallel_for(int64_t n, int64_t grain, cpu::Body body, void* context) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

#ifdef VAE_FUSED_WITH_CUDA
void* current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

void check_launch(int error) {
  TORCH_CHECK(error == 0, "vae_fused: CUDA error: ", cuda::error_string(error));
}
#endif

void launch(const ForwardParams& params, [[maybe_unused]] at::Device device) {
#ifdef VAE_FUSED_WITH_CUDA
  if (device.is_cuda()) return check_launch(cuda::forward(params, current_stream(device)));
#endif
  cpu::forward(params, parallel_for);
}

void launch(const BackwardParams& params, [[maybe_unused]] at::Device device) {
#ifdef VAE_FUSED_WITH_CUDA
  if (device.is_cuda()) return check_launch(cuda::backward(params, current_stream(device)));
#endif
  cpu::backward(params, parallel_for);
}

// -------------------------------------------------------------------------------------------------
// bind
// -------------------------------------------------------------------------------------------------

struct Bound {
  Tensor* tensor;
  Operand* operand;
  bool written = false;
  int64_t before = 0;  // dimensions before those of mu
};

// The space of all defined tensors. Where more than kMaxDims dimensions cannot be merged, copies
// that are contiguous have fewer; results are then copied back.
Space bind(const std::vector<int64_t>& sizes, DimSet summed, const std::vector<Bound>& bounds) {
  Space space;
  for (const bool copy : {false, true}) {
    std::vector<Binding> bindings;
    for (const Bound& b : bounds) {
      if (!b.tensor->defined()) continue;
      if (copy) *b.tensor = b.tensor->contiguous();
      void* data =
          b.written ? b.tensor->mutable_data_ptr() : const_cast<void*>(b.tensor->const_data_ptr());
      bindings.push_back({data, b.tensor->strides().data() + b.before, b.operand});
    }
    if (make_space(sizes, summed, bindings, space)) return space;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, "vae_fused: summed and kept dimensions alternate more than ",
                              kMaxDims, " times in a ", sizes.size(),
                              "-d tensor; move the summed dimensions to the end");
}

// Several samples lie along one dimension before those of mu; one has none.
Tensor in_one_dim(const Tensor& t, const Tensor& mu) {
  if (!t.defined() || t.dim() == mu.dim()) return t;
  std::vector<int64_t> sizes = mu.sizes().vec();
  sizes.insert(sizes.begin(), t.numel() / mu.numel());
  return t.reshape(sizes);
}

Bound sampled(Tensor& t, Sampled& operand, const Tensor& mu, bool written = false) {
  return {&t, &operand, written, t.defined() ? t.dim() - mu.dim() : 0};
}

int64_t samples_of(const Tensor& t, const Tensor& mu) {
  return t.defined() && t.dim() > mu.dim() ? t.size(0) : 1;
}

void set_step(Sampled& operand, const Tensor& t, const Tensor& mu) {
  if (t.defined() && t.dim() > mu.dim()) operand.step = t.stride(0);
}

// A result that had to be bound as a copy.
void copy_back(const Tensor& bound, const Tensor& result) {
  if (!bound.defined() || bound.const_data_ptr() == result.const_data_ptr()) return;
  result.copy_(bound.reshape_symint(result.sym_sizes()));
}

// -------------------------------------------------------------------------------------------------
// forward
// -------------------------------------------------------------------------------------------------

struct Outputs {
  Tensor z, kl, key;
};

// `noise` absent: no sample. `reduction` absent: no KL.
Outputs forward(Tensor mu, Tensors of, std::optional<Noise> noise,
                const std::optional<Reduction>& reduction,
                at::OptionalSymIntArrayRef sample_shape) {
  of.check(mu);
  ForwardParams params;
  params.dtype = dtype_of(mu);
  params.of.family = parse_options(of.options);

  Outputs out;
  Tensor eps;
  if (noise) {
    if (sample_shape.has_value()) {
      c10::SymDimVector shape(sample_shape->begin(), sample_shape->end());
      shape.append(mu.sym_sizes().begin(), mu.sym_sizes().end());
      out.z = at::empty_symint(shape, mu.options());
    } else {
      out.z = at::empty_like(mu);
    }
    noise->check(out.z);
    eps = noise->eps;
    if (noise->reserve) out.key = at::empty({2}, mu.options().dtype(at::kUInt64));
  }
  if (reduction) {
    out.kl = at::empty_symint(reduction->shape(mu), mu.options().dtype(kl_dtype(mu)));
  }
  if (mu.is_meta()) return out;

  const c10::DeviceGuard guard(mu.device());
  if (reduction) params.kl_scale = reduction->scale(mu);
  if (mu.numel() == 0) {  // an empty sum; a mean over nothing is nan, as in torch
    if (out.kl.defined()) out.kl.fill_(0.0 * params.kl_scale);
    if (out.key.defined()) out.key.zero_();
    return out;
  }
  Tensor z = in_one_dim(out.z, mu);
  eps = in_one_dim(eps, mu);
  params.of.samples = samples_of(z, mu);
  params.of.plain = of.plain() && params.of.samples == 1;
  params.space = bind(mu.sizes().vec(), reduction.value_or(Reduction{}).summed,
                      {{&mu, &params.of.mu},
                       {&of.raw, &params.of.raw},
                       {&of.prior_mean, &params.of.prior_mean},
                       {&of.prior_raw, &params.of.prior_raw},
                       {&of.mask, &params.of.mask},
                       sampled(eps, params.eps, mu),
                       sampled(z, params.z, mu, true)});
  set_step(params.eps, eps, mu);
  set_step(params.z, z, mu);
  Tensor partials;
  if (out.kl.defined()) {
    params.kl = out.kl.mutable_data_ptr();
    if (params.space.tiles_per_row > 1) {
      partials = at::empty({params.space.tiles}, mu.options().dtype(at::kDouble));
      params.partials = partials.mutable_data_ptr<double>();
    }
  }
  if (noise && noise->key.defined()) params.key = key_of(noise->key);
  if (noise && noise->reserve) {  // last: nothing after this can refuse the call
    params.key = reserve_key(noise->generator, mu.device(), mu.scalar_type(), out.z.numel());
    params.key_out = static_cast<uint64_t*>(out.key.mutable_data_ptr());
  }
  launch(params, mu.device());
  copy_back(z, out.z);
  return out;
}

}  // namespace

at::ScalarType kl_dtype(const Tensor& mu) {
  return mu.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE,
                                             VAE_FUSED_REDUCTION, VAE_FUSED_FAMILY,
                                             VAE_FUSED_SAMPLES) {
  Outputs out = forward(mu, {raw, prior_mean, prior_raw, mask, options}, Noise::given(eps, key),
                        parse_reduction(reduction, dim, mu.dim()), sample_shape);
  return {out.z, out.kl};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_generator(const Tensor& mu, const Tensor& raw,
                                                               OptionalGenerator generator,
                                                               VAE_FUSED_REDUCTION,
                                                               VAE_FUSED_FAMILY,
                                                               VAE_FUSED_SAMPLES) {
  Outputs out = forward(mu, {raw, prior_mean, prior_raw, mask, options}, Noise::reserved(generator),
                        parse_reduction(reduction, dim, mu.dim()), sample_shape);
  return {out.z, out.kl, out.key};
}

Tensor reparameterize(const Tensor& mu, const Tensor& raw, VAE_FUSED_NOISE, VAE_FUSED_OPTIONS,
                      VAE_FUSED_SAMPLES) {
  return forward(mu, {raw, std::nullopt, std::nullopt, mask, options}, Noise::given(eps, key),
                 std::nullopt, sample_shape)
      .z;
}

std::tuple<Tensor, Tensor> reparameterize_generator(const Tensor& mu, const Tensor& raw,
                                                    OptionalGenerator generator, VAE_FUSED_OPTIONS,
                                                    VAE_FUSED_SAMPLES) {
  Outputs out = forward(mu, {raw, std::nullopt, std::nullopt, mask, options},
                        Noise::reserved(generator), std::nullopt, sample_shape);
  return {out.z, out.key};
}

Tensor gaussian_kl(const Tensor& mu, const OptionalTensor& raw, VAE_FUSED_REDUCTION,
                   VAE_FUSED_FAMILY) {
  return forward(mu, {raw, prior_mean, prior_raw, mask, options}, std::nullopt,
                 parse_reduction(reduction, dim, mu.dim()), std::nullopt)
      .kl;
}

std::pair<Tensor, Tensor> unpack(const Tensor& h, int64_t packed_dim) {
  const int64_t d = packed_dim + (packed_dim < 0 ? h.dim() : 0);
  TORCH_CHECK_INDEX(d >= 0 && d < h.dim(), "vae_fused: packed_dim out of range for ", h.dim(),
                    "-d h");
  const c10::SymInt size = h.sym_size(d);
  TORCH_CHECK_VALUE(size % 2 == 0, "vae_fused: h has size ", size, " in dimension ", d,
                    ", wants an even one: mu and raw");
  return {h.narrow_symint(d, 0, size / 2), h.narrow_symint(d, size / 2, size / 2)};
}

std::tuple<Tensor, Tensor> reparameterize_kl_moments(const Tensor& h, int64_t packed_dim,
                                                     VAE_FUSED_NOISE, VAE_FUSED_REDUCTION,
                                                     VAE_FUSED_FAMILY, VAE_FUSED_SAMPLES) {
  const auto [mu, raw] = unpack(h, packed_dim);
  return reparameterize_kl(mu, raw, eps, key, reduction, dim, prior_mean, prior_raw, mask, options,
                           sample_shape);
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_moments_generator(
    const Tensor& h, int64_t packed_dim, OptionalGenerator generator, VAE_FUSED_REDUCTION,
    VAE_FUSED_FAMILY, VAE_FUSED_SAMPLES) {
  const auto [mu, raw] = unpack(h, packed_dim);
  return reparameterize_kl_generator(mu, raw, generator, reduction, dim, prior_mean, prior_raw,
                                     mask, options, sample_shape);
}

// -------------------------------------------------------------------------------------------------
// backward
// -------------------------------------------------------------------------------------------------

namespace {

// The gradients, written into these tensors; undefined: not required.
struct Gradients {
  Tensor mu, raw, eps, prior_mean, prior_raw;

  bool any() const {
    return mu.defined() || raw.defined() || eps.defined() || prior_mean.defined() ||
           prior_raw.defined();
  }
};

void backward_into(const Gradients& grad, const OptionalTensor& grad_z_in,
                   const OptionalTensor& grad_kl_in, Tensor mu, Tensors of,
                   const OptionalTensor& eps_in, const OptionalTensor& key_in,
                   const Reduction& reduction) {
  Tensor grad_z = grad_z_in.value_or(Tensor()), grad_kl = grad_kl_in.value_or(Tensor());
  of.check(mu);
  // Without grad_z there is no sample to differentiate, and its noise is nobody's concern.
  TORCH_CHECK_VALUE(grad_z.defined() || !grad.eps.defined(),
                    "vae_fused: grad_eps is asked for, but there is no grad_z");
  Noise noise;
  if (grad_z.defined()) {
    const int64_t before = grad_z.dim() - mu.dim();
    TORCH_CHECK_VALUE(before >= 0 && grad_z.sym_sizes().slice(before) == mu.sym_sizes(),
                      "vae_fused: grad_z has shape ", grad_z.sym_sizes(), ", mu has ",
                      mu.sym_sizes());
    TORCH_CHECK_TYPE(grad_z.scalar_type() == mu.scalar_type(), "vae_fused: grad_z has dtype ",
                     grad_z.scalar_type(), ", mu has ", mu.scalar_type());
    TORCH_CHECK(grad_z.device() == mu.device(), "vae_fused: grad_z is on ", grad_z.device(),
                ", mu on ", mu.device());
    noise = Noise::given(eps_in, key_in);
    noise.check(grad_z);
  }
  if (grad_kl.defined()) {
    const auto shape = reduction.shape(mu);
    TORCH_CHECK_VALUE(grad_kl.sym_sizes() == c10::SymIntArrayRef(shape),
                      "vae_fused: grad_kl has shape ", grad_kl.sym_sizes(), ", kl has ",
                      c10::SymIntArrayRef(shape));
    TORCH_CHECK_TYPE(grad_kl.scalar_type() == kl_dtype(mu), "vae_fused: grad_kl has dtype ",
                     grad_kl.scalar_type(), ", kl has ", kl_dtype(mu));
    TORCH_CHECK(grad_kl.device() == mu.device(), "vae_fused: grad_kl is on ", grad_kl.device(),
                ", mu on ", mu.device());
  }
  if (!grad.any() || mu.is_meta() || mu.numel() == 0) return;

  const c10::DeviceGuard guard(mu.device());
  BackwardParams params;
  params.dtype = dtype_of(mu);
  params.of.family = parse_options(of.options);
  if (noise.key.defined()) params.key = key_of(noise.key);
  if (grad_kl.defined()) {
    // The gradient of a sum of a KL of many rows is one value, expanded.
    const auto strides = grad_kl.strides();
    if (std::any_of(strides.begin(), strides.end(), [](int64_t s) { return s != 0; })) {
      grad_kl = grad_kl.contiguous();
    } else {
      params.grad_kl_stride = 0;
    }
    params.grad_kl = grad_kl.const_data_ptr();
    params.kl_scale = reduction.scale(mu);
  }
  grad_z = in_one_dim(grad_z, mu);
  Tensor eps = in_one_dim(noise.eps, mu);
  Gradients bound = grad;
  bound.eps = in_one_dim(grad.eps, mu);
  params.of.samples = samples_of(grad_z, mu);
  params.of.plain = of.plain() && params.of.samples == 1;
  params.space = bind(mu.sizes().vec(), reduction.summed,
                      {{&mu, &params.of.mu},
                       {&of.raw, &params.of.raw},
                       {&of.prior_mean, &params.of.prior_mean},
                       {&of.prior_raw, &params.of.prior_raw},
                       {&of.mask, &params.of.mask},
                       sampled(eps, params.eps, mu),
                       sampled(grad_z, params.grad_z, mu),
                       {&bound.mu, &params.grad_mu, true},
                       {&bound.raw, &params.grad_raw, true},
                       {&bound.prior_mean, &params.grad_prior_mean, true},
                       {&bound.prior_raw, &params.grad_prior_raw, true},
                       sampled(bound.eps, params.grad_eps, mu, true)});
  set_step(params.eps, eps, mu);
  set_step(params.grad_z, grad_z, mu);
  set_step(params.grad_eps, bound.eps, mu);
  launch(params, mu.device());
  copy_back(bound.mu, grad.mu);
  copy_back(bound.raw, grad.raw);
  copy_back(bound.prior_mean, grad.prior_mean);
  copy_back(bound.prior_raw, grad.prior_raw);
  copy_back(bound.eps, grad.eps);
}

// A gradient of `t`, if it is wanted. That of eps is in the shape of grad_z.
Tensor wanted(bool wanted, const OptionalTensor& t) {
  return wanted && t.has_value() ? at::empty_like(*t) : Tensor();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> reparameterize_kl_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& mu,
    const OptionalTensor& raw, VAE_FUSED_NOISE, VAE_FUSED_REDUCTION, VAE_FUSED_FAMILY,
    std::array<bool, 5> output_mask) {
  const Gradients grad{wanted(output_mask[0], mu), wanted(output_mask[1], raw),
                       wanted(output_mask[2], grad_z), wanted(output_mask[3], prior_mean),
                       wanted(output_mask[4], prior_raw)};
  backward_into(grad, grad_z, grad_kl, mu, {raw, prior_mean, prior_raw, mask, options}, eps, key,
                parse_reduction(reduction, dim, mu.dim()));
  return {grad.mu, grad.raw, grad.eps, grad.prior_mean, grad.prior_raw};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> reparameterize_kl_moments_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& h,
    int64_t packed_dim, VAE_FUSED_NOISE, VAE_FUSED_REDUCTION, VAE_FUSED_FAMILY,
    std::array<bool, 4> output_mask) {
  const auto [mu, raw] = unpack(h, packed_dim);
  Gradients grad{Tensor(), Tensor(), wanted(output_mask[1], grad_z),
                 wanted(output_mask[2], prior_mean), wanted(output_mask[3], prior_raw)};
  // One tensor, whose halves the kernel writes in place.
  const Tensor grad_h = wanted(output_mask[0], h);
  if (grad_h.defined()) std::tie(grad.mu, grad.raw) = unpack(grad_h, packed_dim);
  backward_into(grad, grad_z, grad_kl, mu, {raw, prior_mean, prior_raw, mask, options}, eps, key,
                parse_reduction(reduction, dim, mu.dim()));
  return {grad_h, grad.eps, grad.prior_mean, grad.prior_raw};
}

}  // namespace vae_fused
