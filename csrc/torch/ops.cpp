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

void check_like_mu(const Tensor& t, const char* name, const Tensor& mu) {
  TORCH_CHECK_VALUE(t.sym_sizes() == mu.sym_sizes(), "vae_fused: ", name, " has shape ",
                    t.sym_sizes(), ", mu has ", mu.sym_sizes());
  TORCH_CHECK_TYPE(t.scalar_type() == mu.scalar_type(), "vae_fused: ", name, " has dtype ",
                   t.scalar_type(), ", mu has ", mu.scalar_type());
  TORCH_CHECK(t.device() == mu.device(), "vae_fused: ", name, " is on ", t.device(), ", mu on ",
              mu.device());
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

  void check(const Tensor& mu) const {
    if (eps.defined()) check_like_mu(eps, "eps", mu);
    if (key.defined()) check_key(key, mu);
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
      bindings.push_back({data, b.tensor->strides().data(), b.operand});
    }
    if (make_space(sizes, summed, bindings, space)) return space;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, "vae_fused: summed and kept dimensions alternate more than ",
                              kMaxDims, " times in a ", sizes.size(),
                              "-d tensor; move the summed dimensions to the end");
}

void copy_back(const Tensor& bound, const Tensor& result) {
  if (!bound.is_same(result)) result.copy_(bound);
}

// -------------------------------------------------------------------------------------------------
// forward
// -------------------------------------------------------------------------------------------------

struct Outputs {
  Tensor z, kl, key;
};

// `noise` absent: no sample. `reduction` absent: no KL.
Outputs forward(Tensor mu, Tensor logvar, std::optional<Noise> noise,
                const std::optional<Reduction>& reduction) {
  check_like_mu(logvar, "logvar", mu);
  ForwardParams params;
  params.dtype = dtype_of(mu);

  Outputs out;
  Tensor eps;
  if (noise) {
    noise->check(mu);
    eps = noise->eps;
    out.z = at::empty_like(mu);
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
  Tensor z = out.z;
  params.space = bind(
      mu.sizes().vec(), reduction.value_or(Reduction{}).summed,
      {{&mu, &params.mu}, {&logvar, &params.logvar}, {&eps, &params.eps}, {&z, &params.z, true}});
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
    params.key = reserve_key(noise->generator, mu.device(), mu.scalar_type(), mu.numel());
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

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mu, const Tensor& logvar,
                                             const OptionalTensor& eps, const OptionalTensor& key,
                                             std::string_view reduction,
                                             at::OptionalIntArrayRef dim) {
  Outputs out =
      forward(mu, logvar, Noise::given(eps, key), parse_reduction(reduction, dim, mu.dim()));
  return {out.z, out.kl};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_generator(const Tensor& mu,
                                                               const Tensor& logvar,
                                                               OptionalGenerator generator,
                                                               std::string_view reduction,
                                                               at::OptionalIntArrayRef dim) {
  Outputs out =
      forward(mu, logvar, Noise::reserved(generator), parse_reduction(reduction, dim, mu.dim()));
  return {out.z, out.kl, out.key};
}

Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const OptionalTensor& eps,
                      const OptionalTensor& key) {
  return forward(mu, logvar, Noise::given(eps, key), std::nullopt).z;
}

std::tuple<Tensor, Tensor> reparameterize_generator(const Tensor& mu, const Tensor& logvar,
                                                    OptionalGenerator generator) {
  Outputs out = forward(mu, logvar, Noise::reserved(generator), std::nullopt);
  return {out.z, out.key};
}

Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, std::string_view reduction,
                   at::OptionalIntArrayRef dim) {
  return forward(mu, logvar, std::nullopt, parse_reduction(reduction, dim, mu.dim())).kl;
}

std::pair<Tensor, Tensor> unpack(const Tensor& h, int64_t packed_dim) {
  const int64_t d = packed_dim + (packed_dim < 0 ? h.dim() : 0);
  TORCH_CHECK_INDEX(d >= 0 && d < h.dim(), "vae_fused: packed_dim out of range for ", h.dim(),
                    "-d h");
  const c10::SymInt size = h.sym_size(d);
  TORCH_CHECK_VALUE(size % 2 == 0, "vae_fused: h has size ", size, " in dimension ", d,
                    ", wants an even one: mu and logvar");
  return {h.narrow_symint(d, 0, size / 2), h.narrow_symint(d, size / 2, size / 2)};
}

std::tuple<Tensor, Tensor> reparameterize_kl_moments(const Tensor& h, int64_t packed_dim,
                                                     const OptionalTensor& eps,
                                                     const OptionalTensor& key,
                                                     std::string_view reduction,
                                                     at::OptionalIntArrayRef dim) {
  const auto [mu, logvar] = unpack(h, packed_dim);
  return reparameterize_kl(mu, logvar, eps, key, reduction, dim);
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_moments_generator(
    const Tensor& h, int64_t packed_dim, OptionalGenerator generator, std::string_view reduction,
    at::OptionalIntArrayRef dim) {
  const auto [mu, logvar] = unpack(h, packed_dim);
  return reparameterize_kl_generator(mu, logvar, generator, reduction, dim);
}

// -------------------------------------------------------------------------------------------------
// backward
// -------------------------------------------------------------------------------------------------

namespace {

// The gradients are written into the given tensors; undefined: not required.
void backward_into(const OptionalTensor& grad_z_in, const OptionalTensor& grad_kl_in, Tensor mu,
                   Tensor logvar, const OptionalTensor& eps_in, const OptionalTensor& key_in,
                   std::string_view reduction_name, at::OptionalIntArrayRef dim,
                   const Tensor& grad_mu, const Tensor& grad_logvar, const Tensor& grad_eps) {
  Tensor grad_z = grad_z_in.value_or(Tensor()), grad_kl = grad_kl_in.value_or(Tensor());
  const Reduction reduction = parse_reduction(reduction_name, dim, mu.dim());
  check_like_mu(logvar, "logvar", mu);
  // Without grad_z there is no sample to differentiate, and its noise is nobody's concern.
  TORCH_CHECK_VALUE(grad_z.defined() || !grad_eps.defined(),
                    "vae_fused: grad_eps is asked for, but there is no grad_z");
  Noise noise;
  if (grad_z.defined()) {
    check_like_mu(grad_z, "grad_z", mu);
    noise = Noise::given(eps_in, key_in);
    noise.check(mu);
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

  const bool nothing = !grad_mu.defined() && !grad_logvar.defined() && !grad_eps.defined();
  if (nothing || mu.is_meta() || mu.numel() == 0) return;

  const c10::DeviceGuard guard(mu.device());
  BackwardParams params;
  params.dtype = dtype_of(mu);
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
  Tensor bound_mu = grad_mu, bound_logvar = grad_logvar, bound_eps = grad_eps;
  params.space = bind(mu.sizes().vec(), reduction.summed,
                      {{&mu, &params.mu},
                       {&logvar, &params.logvar},
                       {&noise.eps, &params.eps},
                       {&grad_z, &params.grad_z},
                       {&bound_mu, &params.grad_mu, true},
                       {&bound_logvar, &params.grad_logvar, true},
                       {&bound_eps, &params.grad_eps, true}});
  launch(params, mu.device());
  copy_back(bound_mu, grad_mu);
  copy_back(bound_logvar, grad_logvar);
  copy_back(bound_eps, grad_eps);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& mu,
    const Tensor& logvar, const OptionalTensor& eps, const OptionalTensor& key,
    std::string_view reduction, at::OptionalIntArrayRef dim, std::array<bool, 3> output_mask) {
  Tensor grad_mu, grad_logvar, grad_eps;
  if (output_mask[0]) grad_mu = at::empty_like(mu);
  if (output_mask[1]) grad_logvar = at::empty_like(logvar);
  if (output_mask[2]) grad_eps = at::empty_like(mu);
  backward_into(grad_z, grad_kl, mu, logvar, eps, key, reduction, dim, grad_mu, grad_logvar,
                grad_eps);
  return {grad_mu, grad_logvar, grad_eps};
}

std::tuple<Tensor, Tensor> reparameterize_kl_moments_backward(
    const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& h,
    int64_t packed_dim, const OptionalTensor& eps, const OptionalTensor& key,
    std::string_view reduction, at::OptionalIntArrayRef dim, std::array<bool, 2> output_mask) {
  const auto [mu, logvar] = unpack(h, packed_dim);
  Tensor grad_h, grad_eps, grad_mu, grad_logvar;
  if (output_mask[0]) {  // one tensor, whose halves the kernel writes in place
    grad_h = at::empty_like(h);
    std::tie(grad_mu, grad_logvar) = unpack(grad_h, packed_dim);
  }
  if (output_mask[1]) grad_eps = at::empty_like(mu);
  backward_into(grad_z, grad_kl, mu, logvar, eps, key, reduction, dim, grad_mu, grad_logvar,
                grad_eps);
  return {grad_h, grad_eps};
}

}  // namespace vae_fused
