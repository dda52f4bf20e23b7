// The Python module `_native`: the mathematics on arrays, the kernels of both devices on arrays
// with any strides, the emulator's controls and its probes. Arrays are float32, float64, float16,
// or uint16 for bfloat16. The caller owns the arrays and keeps them alive during deferred
// execution.
#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>

#include "cpu/noise.h"
#include "likelihoods.h"
#include "maths.h"
#include "params/latent_multi.h"
#include "params/latent_stats.h"
#include "params/likelihood.h"
#include "probes.h"
#include "space.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using vae_fused::DType;
using vae_fused::testing::Array;
using vae_fused::testing::make_space;
using MaybeArray = std::optional<py::array>;

struct Stream {
  emu::Stream* const handle = emu::create_stream();
  Stream() = default;
  ~Stream() { emu::destroy_stream(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
};

emu::Stream* handle_of(const Stream* stream) { return stream ? stream->handle : nullptr; }

using vae_fused::math::ScaleBase;
const std::map<std::string, ScaleBase> kBases = {{"exp", ScaleBase::kExp},
                                                 {"identity", ScaleBase::kIdentity},
                                                 {"sqrt", ScaleBase::kSqrt},
                                                 {"softplus", ScaleBase::kSoftplus},
                                                 {"sigmoid", ScaleBase::kSigmoid}};

// The mathematics
// -------------------------------------------------------------------------------------------------

template <typename T>
using Values = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Returns a function that maps an array to an array [size, per], with `per` results for each value.
template <typename T>
auto mapped(void (*function)(const T*, T*, int64_t), int per) {
  return [=](py::array_t<T, py::array::c_style> x) {
    py::array_t<T> out({x.size(), static_cast<py::ssize_t>(per)});
    function(x.data(), out.mutable_data(), x.size());
    return out;
  };
}

// Each precision has an overload, which is selected by the dtype of the array.
template <typename T>
void bind_math(py::module_& m, const char* normals_name) {
  m.def("exp", mapped<T>(&maths::exp, 1), py::arg().noconvert());
  m.def("log", mapped<T>(&maths::log, 1), py::arg().noconvert());
  m.def("exponentials", mapped<T>(&maths::exponentials, 5), py::arg().noconvert());
  m.def("log_any", mapped<T>(&maths::log_any, 1), py::arg().noconvert());
  m.def("log1p_unit", mapped<T>(&maths::log1p_unit, 1), py::arg().noconvert());
  m.def("tanh", mapped<T>(&maths::tanh, 2), py::arg().noconvert());
  m.def(
      "scale_base",
      [](const std::string& base, py::array_t<T, py::array::c_style> x) {
        py::array_t<T> out({x.size(), static_cast<py::ssize_t>(4)});
        maths::scale_base(static_cast<int>(kBases.at(base)), x.data(), out.mutable_data(),
                          x.size());
        return out;
      },
      py::arg(), py::arg().noconvert());
  m.def("log1p", mapped<T>(&maths::log1p, 1), py::arg().noconvert());
  m.def("log1p_excess", mapped<T>(&maths::log1p_excess, 1), py::arg().noconvert());
  m.def("stirling", mapped<T>(&maths::stirling, 2), py::arg().noconvert());
  m.def(
      normals_name,
      [](uint64_t seed, uint64_t offset, uint64_t first, py::ssize_t n) {
        py::array_t<T> out(n);
        maths::normals(seed, offset, first, out.mutable_data(), n);
        return out;
      },
      "seed"_a, "offset"_a, "first"_a, "n"_a);
}

// The normals that the CPU kernels compute with the baseline instruction set.
template <typename T>
void bind_noise(py::module_& m, const char* name) {
  using vae_fused::Key;
  namespace baseline = vae_fused::cpu::baseline;
  m.def(
      name,
      [](uint64_t seed, uint64_t offset, uint64_t first, py::ssize_t n) {
        py::array_t<T> out(n);
        vae_fused::cpu::Prefetcher nothing(0);
        baseline::fill(Key{seed, offset}, first, static_cast<int>(n), out.mutable_data(), nothing);
        return out;
      },
      "seed"_a, "offset"_a, "first"_a, "n"_a);
  m.def(
      name,
      [](uint64_t seed, uint64_t offset, py::array_t<uint64_t, py::array::c_style> indices) {
        py::array_t<T> out(indices.size());
        baseline::fill_at(Key{seed, offset}, indices.data(), static_cast<int>(out.size()),
                          out.mutable_data());
        return out;
      },
      "seed"_a, "offset"_a, "indices"_a);
}

py::array_t<uint32_t> philox(uint64_t seed, uint64_t first, py::ssize_t blocks) {
  py::array_t<uint32_t> out({blocks, static_cast<py::ssize_t>(4)});
  maths::philox(seed, first, out.mutable_data(), blocks);
  return out;
}

// -------------------------------------------------------------------------------------------------
// Kernels
// -------------------------------------------------------------------------------------------------

DType dtype_of(const py::array& array) {
  if (array.dtype().is(py::dtype::of<float>())) return DType::kFloat32;
  if (array.dtype().is(py::dtype::of<double>())) return DType::kFloat64;
  if (array.dtype().is(py::dtype::of<uint16_t>())) return DType::kBFloat16;
  if (array.dtype().is(py::dtype("float16"))) return DType::kFloat16;
  throw std::invalid_argument("dtype must be float32, float64, float16 or uint16 (bfloat16)");
}

// Set `any_dtype` for a mask. z, eps and their gradients may have a leading sample dimension.
Array view(const MaybeArray& array, const py::array& like, bool any_dtype = false) {
  if (!array) return {};
  const py::ssize_t before = array->ndim() - like.ndim();
  if ((!any_dtype && !array->dtype().is(like.dtype())) || before < 0 || before > 1) {
    throw std::invalid_argument("arrays of a call have one dtype and one number of dimensions");
  }
  Array result{const_cast<void*>(array->data()), {}};
  if (before > 0) result.step = array->strides(0) / array->itemsize();
  for (py::ssize_t d = 0; d < like.ndim(); ++d) {
    if (array->shape(before + d) != like.shape(d)) throw std::invalid_argument("shapes differ");
    result.strides.push_back(array->strides(before + d) / array->itemsize());
  }
  return result;
}

int64_t samples_of(const MaybeArray& array, const py::array& mu) {
  return array && array->ndim() > mu.ndim() ? array->shape(0) : 1;
}

template <typename T>
T* pointer(const MaybeArray& array) {
  return array ? static_cast<T*>(const_cast<void*>(array->data())) : nullptr;
}

struct Shape {
  std::vector<int64_t> sizes;
  std::vector<bool> summed;
  Shape(const py::array& mu, const std::vector<int>& dims)
      : sizes(mu.shape(), mu.shape() + mu.ndim()), summed(mu.ndim()) {
    for (int d : dims) summed.at(d) = true;
  }
};

// See RngKey. `pointers` is an array that contains the seed and the offset.
vae_fused::RngKey make_key(std::pair<uint64_t, uint64_t> key, const MaybeArray& pointers,
                           uint32_t shift) {
  vae_fused::RngKey result;
  result.seed = key.first;
  result.offset = key.second;
  result.shift = shift;
  result.seed_ptr = pointer<uint64_t>(pointers);
  result.offset_ptr = pointers ? result.seed_ptr + 1 : nullptr;
  return result;
}

void serial_for(int64_t n, int64_t, vae_fused::cpu::Body body, void* context) {
  body(context, 0, n);
}

void check(int error) {
  if (error == 0) return;
  const std::string fault = emu::take_fault();
  const auto code = static_cast<cudaError_t>(error);
  cudaGetLastError();  // the exception reports the error, so clear it
  throw std::runtime_error(fault.empty() ? cudaGetErrorString(code) : fault);
}

template <typename Params>
void call(const std::string& device, const Params& params,
          void (*on_cpu)(const Params&, vae_fused::cpu::ParallelFor),
          int (*on_cuda)(const Params&, void*), const Stream* stream) {
  if (device == "cpu") return on_cpu(params, serial_for);
  if (device != "cuda") throw std::invalid_argument("no such device: " + device);
  check(on_cuda(params, handle_of(stream)));
}

py::dict space_of(const py::array& mu, const std::vector<int>& dims) {
  vae_fused::Operand operand;
  const Array array = view(mu, mu);
  const Shape shape(mu, dims);
  const auto space = make_space(shape.sizes, shape.summed, {{&array, &operand}});
  return py::dict("rows"_a = space.rows, "cols"_a = space.cols, "tiles"_a = space.tiles,
                  "tiles_per_row"_a = space.tiles_per_row);
}

// Reads the fields of a math::LatentOptions by name. The fields of scales are in nested
// dictionaries.
void read(const py::dict& fields, const char* name, double& value) {
  if (fields.contains(name)) value = fields[name].cast<double>();
}

vae_fused::math::ScaleOptions<double> scale_options(const py::dict& fields) {
  vae_fused::math::ScaleOptions<double> o;
  if (fields.contains("base")) o.base = kBases.at(fields["base"].cast<std::string>());
  read(fields, "gain", o.gain);
  read(fields, "shift", o.shift);
  read(fields, "low", o.low);
  read(fields, "high", o.high);
  read(fields, "soft_clamp", o.soft_clamp);
  read(fields, "unit", o.unit);
  read(fields, "var_floor", o.var_floor);
  read(fields, "std_floor", o.std_floor);
  read(fields, "root_floor", o.root_floor);
  read(fields, "std_min", o.std_min);
  o.per_soft_clamp = o.soft_clamp > 0 ? 1 / o.soft_clamp : 0;
  o.log_unit_squared = 2 * std::log(o.unit);
  return o;
}

vae_fused::math::LatentOptions<double> latent_options(const py::dict& fields) {
  vae_fused::math::LatentOptions<double> f;
  if (fields.contains("posterior")) f.posterior = scale_options(fields["posterior"]);
  if (fields.contains("prior")) f.prior = scale_options(fields["prior"]);
  read(fields, "mu_soft_clamp", f.mu_soft_clamp);
  f.per_mu_soft_clamp = f.mu_soft_clamp > 0 ? 1 / f.mu_soft_clamp : 0;
  read(fields, "prior_mean", f.prior_mean);
  read(fields, "prior_x", f.prior_x);
  f.prior_precision = std::exp(-0.5 * f.prior_x);
  read(fields, "temperature", f.temperature);
  read(fields, "free_bits", f.free_bits);
  read(fields, "to_posterior", f.to_posterior);
  read(fields, "to_prior", f.to_prior);
  read(fields, "constant", f.constant);
  f.is_linear_form = fields.contains("is_linear_form");
  f.at_sample = fields.contains("at_sample");
  f.stop_q = fields.contains("stop_q");
  if (f.is_linear_form || f.at_sample) f.free_bits = -std::numeric_limits<double>::infinity();
  return f;
}

// Reads, by name, the options that are one-element arrays. The caller keeps the arrays alive.
template <typename Params>
void point_to(const py::dict& arrays, vae_fused::WithScalars<Params>& params) {
  const auto dtype =
      params.dtype == DType::kFloat64 ? py::dtype::of<double>() : py::dtype::of<float>();
  params.scalars.visit([&](const char* name, const void*& pointer) {
    if (!arrays.contains(name)) return;
    const auto array = arrays[name].cast<py::array>();
    if (!array.dtype().is(dtype)) throw std::invalid_argument("not of the arithmetic's dtype");
    pointer = array.data();
  });
}

// Reads the fields of a likelihoods::Options by name.
likelihoods::Options likelihood_options(const py::dict& fields) {
  using vae_fused::math::FrontEnd;
  const std::map<std::string, FrontEnd> kFrontEnds = {{"identity", FrontEnd::kIdentity},
                                                      {"exp", FrontEnd::kExp},
                                                      {"softplus", FrontEnd::kSoftplus},
                                                      {"softmax", FrontEnd::kSoftmax}};
  likelihoods::Options o;
  if (fields.contains("mean")) o.mean = kFrontEnds.at(fields["mean"].cast<std::string>());
  if (fields.contains("dispersion")) {
    o.dispersion = kFrontEnds.at(fields["dispersion"].cast<std::string>());
  }
  if (fields.contains("probs")) o.zero_inflation = vae_fused::math::ZeroInflation::kProbs;
  if (fields.contains("constants")) o.constants = fields["constants"].cast<bool>();
  if (fields.contains("scale")) {
    o.has_raw = true;
    o.scale = scale_options(fields["scale"]);
  }
  if (fields.contains("df")) {
    o.df = fields["df"].cast<double>();
    o.has_df = o.df == 0;  // df is then an output of the decoder
  }
  read(fields, "half_step", o.half_step);
  read(fields, "log_scale_min", o.log_scale_min);
  read(fields, "dispersion_max", o.dispersion_max);
  read(fields, "eps", o.eps);
  read(fields, "precision", o.precision);
  read(fields, "constant", o.constant);
  return o;
}

const likelihoods::Variant* const kLikelihoods[] = {
    &likelihoods::scalar, &likelihoods::emulated, &likelihoods::baseline,
#if defined(LIKELIHOOD_TARGETS)
    &likelihoods::avx2,   &likelihoods::avx512,
#endif
};

std::vector<std::string> likelihood_variants() {
  std::vector<std::string> names;
  for (const auto* variant : kLikelihoods) {
    if (variant->available) names.push_back(variant->name);
  }
  return names;
}

// x is [inputs, n]. Returns [1 + inputs, n]: values and gradients.
template <typename T>
py::array_t<T> likelihood(const std::string& name, int kind, const py::dict& fields,
                          py::array_t<T, py::array::c_style> x) {
  for (const auto* variant : kLikelihoods) {
    if (variant->name != name) continue;
    py::array_t<T> out({x.shape(0) + 1, x.shape(1)});
    likelihoods::Evaluate<T> evaluate;
    if constexpr (sizeof(T) == 8) {
      evaluate = variant->in_double;
    } else {
      evaluate = variant->in_float;
    }
    if (!evaluate) break;
    evaluate(static_cast<likelihoods::Kind>(kind), likelihood_options(fields), x.data(),
             out.mutable_data(), x.shape(1));
    return out;
  }
  throw std::invalid_argument("no such variant: " + name);
}

// Divides the iteration space of statistics, whose rows are the items of the batch, into tasks.
vae_fused::StatsTasks stats_tasks(const std::string& device, const vae_fused::Space& space) {
  using vae_fused::StatsTasks;
  return device == "cuda" ? StatsTasks::for_cuda(space) : StatsTasks::for_cpu(space);
}

// Returns the number of columns and the number of partial sums of a call.
std::pair<int64_t, int64_t> stats_sizes(const std::string& device, const py::array& mu,
                                        const std::vector<int>& dims) {
  Shape shape(mu, dims);
  shape.summed.flip();
  vae_fused::Operand operand;
  const Array array = view(mu, mu);
  const auto space = make_space(shape.sizes, shape.summed, {{&array, &operand}});
  return {space.cols, stats_tasks(device, space).partials()};
}

void stats(const std::string& device, const py::array& mu, const py::array& raw,
           const std::vector<int>& dims, const py::array& kl, const py::array& mean,
           const py::array& variance, const py::array& clamped, const py::array& non_finite,
           const py::array& partials, const MaybeArray& prior_mean, const MaybeArray& prior_raw,
           const MaybeArray& mask, const py::dict& options, const py::dict& scalars,
           const Stream* stream) {
  vae_fused::WithScalars<vae_fused::StatsParams> params;
  params.dtype = dtype_of(mu);
  params.gaussians.options = latent_options(options);
  point_to(scalars, params);
  Shape shape(mu, dims);
  shape.summed.flip();
  vae_fused::testing::bind(params, shape.sizes, shape.summed,
                           {{"mu", view(mu, mu)},
                            {"raw", view(raw, mu)},
                            {"prior_mean", view(prior_mean, mu)},
                            {"prior_raw", view(prior_raw, mu)},
                            {"mask", view(mask, mu, true)}});
  params.tasks = stats_tasks(device, params.space);
  params.kl = pointer<void>(kl);
  params.mean = pointer<void>(mean);
  params.variance = pointer<void>(variance);
  params.clamped = pointer<int64_t>(clamped);
  params.non_finite = pointer<int64_t>(non_finite);
  params.partials = pointer<double>(partials);
  call(device, params, &vae_fused::cpu::stats, &vae_fused::cuda::stats, stream);
}

void forward(const std::string& device, const py::array& mu, const MaybeArray& raw,
             const std::vector<int>& dims, const MaybeArray& eps, const MaybeArray& z,
             const MaybeArray& kl, const MaybeArray& partials, const MaybeArray& key_out,
             std::pair<uint64_t, uint64_t> key, const MaybeArray& key_pointers, uint32_t shift,
             double kl_factor, const MaybeArray& prior_mean, const MaybeArray& prior_raw,
             const MaybeArray& mask, const py::dict& options, const py::dict& scalars,
             const Stream* stream) {
  vae_fused::WithScalars<vae_fused::ForwardParams> params;
  params.dtype = dtype_of(mu);
  params.key = make_key(key, key_pointers, shift);
  params.kl.factor = kl_factor;
  params.gaussians.samples = samples_of(z, mu);
  params.gaussians.options = latent_options(options);
  point_to(scalars, params);
  const Shape shape(mu, dims);
  vae_fused::testing::bind(params, shape.sizes, shape.summed,
                           {{"mu", view(mu, mu)},
                            {"raw", view(raw, mu)},
                            {"eps", view(eps, mu)},
                            {"z", view(z, mu)},
                            {"prior_mean", view(prior_mean, mu)},
                            {"prior_raw", view(prior_raw, mu)},
                            {"mask", view(mask, mu, true)}});
  params.kl.data = pointer<void>(kl);
  if (params.space.tiles_per_row > 1) params.kl.partials = pointer<double>(partials);
  params.key_out = pointer<uint64_t>(key_out);
  call(device, params, &vae_fused::cpu::forward, &vae_fused::cuda::forward, stream);
}

// Returns the kernel choice for a forward call with these tensors, a KL, and noise from a key.
py::dict select_kernel(const py::array& mu, const py::array& raw, const py::array& z,
                       const std::vector<int>& dims) {
  vae_fused::ForwardParams params;
  params.dtype = dtype_of(mu);
  const Shape shape(mu, dims);
  vae_fused::testing::bind(params, shape.sizes, shape.summed,
                           {{"mu", view(mu, mu)}, {"raw", view(raw, mu)}, {"z", view(z, mu)}});
  const auto choice = probes::select_kernel(params);
  return py::dict("access"_a = choice.access, "is_default"_a = choice.is_default,
                  "has_fast_path"_a = choice.has_fast_path,
                  "pixel_pairs"_a = params.space.pixel_pairs);
}

void backward(const std::string& device, const py::array& mu, const MaybeArray& raw,
              const std::vector<int>& dims, const MaybeArray& eps, const MaybeArray& grad_z,
              const MaybeArray& grad_kl, int64_t grad_kl_stride, const MaybeArray& grad_mu,
              const MaybeArray& grad_raw, const MaybeArray& grad_eps,
              std::pair<uint64_t, uint64_t> key, const MaybeArray& key_pointers, uint32_t shift,
              double kl_factor, const MaybeArray& prior_mean, const MaybeArray& prior_raw,
              const MaybeArray& mask, const MaybeArray& grad_prior_mean,
              const MaybeArray& grad_prior_raw, const py::dict& options, const py::dict& scalars,
              const Stream* stream) {
  vae_fused::WithScalars<vae_fused::BackwardParams> params;
  params.dtype = dtype_of(mu);
  params.key = make_key(key, key_pointers, shift);
  params.grad_kl.factor = kl_factor;
  params.grad_kl.data = pointer<void>(grad_kl);
  params.grad_kl.stride = grad_kl_stride;
  params.gaussians.samples = samples_of(grad_z, mu);
  params.gaussians.options = latent_options(options);
  point_to(scalars, params);
  const Shape shape(mu, dims);
  vae_fused::testing::bind(params, shape.sizes, shape.summed,
                           {{"mu", view(mu, mu)},
                            {"raw", view(raw, mu)},
                            {"eps", view(eps, mu)},
                            {"grad_z", view(grad_z, mu)},
                            {"grad_mu", view(grad_mu, mu)},
                            {"grad_raw", view(grad_raw, mu)},
                            {"grad_eps", view(grad_eps, mu)},
                            {"prior_mean", view(prior_mean, mu)},
                            {"prior_raw", view(prior_raw, mu)},
                            {"mask", view(mask, mu, true)},
                            {"grad_prior_mean", view(grad_prior_mean, mu)},
                            {"grad_prior_raw", view(grad_prior_raw, mu)}});
  call(device, params, &vae_fused::cpu::backward, &vae_fused::cuda::backward, stream);
}

// Runs a call for a list of contiguous arrays. Without `grads`, it runs forward and writes `out`,
// `kl` and `partials`. With `grads`, the gradients of z, it runs backward and writes `out` and
// `more`. Without arrays for z or its gradients, the call computes only the KL. The noise of each
// tensor begins at the first block after the noise of the previous tensor.
using Arrays = std::vector<py::array>;

void multi(const std::string& device, const Arrays& mu, const Arrays& raw, const Arrays& out,
           const std::optional<Arrays>& grads, const Arrays& more, const py::array& kl,
           const MaybeArray& partials, const std::vector<double>& weights,
           std::pair<uint64_t, uint64_t> key, const py::dict& options, const py::dict& scalars,
           const std::optional<Arrays>& prior_mean, const std::optional<Arrays>& prior_raw,
           const Stream* stream) {
  vae_fused::WithScalars<vae_fused::MultiParams> params;
  params.dtype = dtype_of(mu.at(0));
  params.key = make_key(key, std::nullopt, 0);
  params.options = latent_options(options);
  point_to(scalars, params);
  const int64_t per = params.dtype == DType::kFloat64 ? 2 : 4;
  uint64_t blocks = 0;
  for (size_t k = 0; k < mu.size(); ++k) {
    vae_fused::Item& item = params.item[params.items++];
    item.mu = mu[k].data();
    item.raw = raw[k].data();
    item.n = mu[k].size();
    item.first_tile = params.tiles;
    item.first_block = blocks;
    item.weight = weights[k];
    // Every second item has no prior tensors.
    if (prior_mean && k % 2 == 0) item.prior_mean = (*prior_mean)[k].data();
    if (prior_raw && k % 2 == 0) item.prior_raw = (*prior_raw)[k].data();
    const vae_fused::math::LatentOptions<double>& f = params.options;
    item.prior = {f.prior_mean, f.prior_precision, f.prior_x};
    if (grads) {
      if (!grads->empty()) item.grad_z = (*grads)[k].data();
      item.grad_mu = const_cast<void*>(out[k].data());
      item.grad_raw = const_cast<void*>(more[k].data());
    } else if (!out.empty()) {
      item.z = const_cast<void*>(out[k].data());
    }
    params.tiles += vae_fused::tiles_of(item.n);
    blocks += (item.n + per - 1) / per;
  }
  if (grads) {
    params.grad_kl = kl.data();
    return call(device, params, &vae_fused::cpu::backward_multi, &vae_fused::cuda::backward_multi,
                stream);
  }
  params.kl = const_cast<void*>(kl.data());
  params.partials = pointer<double>(partials);
  call(device, params, &vae_fused::cpu::forward_multi, &vae_fused::cuda::forward_multi, stream);
}

// -------------------------------------------------------------------------------------------------
// The likelihoods
// -------------------------------------------------------------------------------------------------

// Doubles that only the kernels access, initialized to NaN. The executor of launches gets the
// extents of all live objects of this class: see set_executor.
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : values_(static_cast<size_t>(size), std::numeric_limits<double>::quiet_NaN()) {
    live().push_back(this);
  }
  ~Scratch() { live().erase(std::find(live().begin(), live().end(), this)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  double* data() { return values_.data(); }
  std::pair<uintptr_t, uintptr_t> extent() const {
    const auto start = reinterpret_cast<uintptr_t>(values_.data());
    return {start, start + values_.size() * sizeof(double)};
  }
  static std::vector<const Scratch*>& live() {
    static std::vector<const Scratch*> all;
    return all;
  }

 private:
  std::vector<double> values_;
};

using vae_fused::TargetType;

TargetType target_type_of(const py::array& array) {
  if (array.dtype().is(py::dtype::of<uint8_t>())) return TargetType::kUInt8;
  if (array.dtype().is(py::dtype::of<int32_t>())) return TargetType::kInt32;
  if (array.dtype().is(py::dtype::of<int64_t>())) return TargetType::kInt64;
  switch (dtype_of(array)) {
    case DType::kFloat32:
      return TargetType::kFloat32;
    case DType::kFloat64:
      return TargetType::kFloat64;
    case DType::kFloat16:
      return TargetType::kFloat16;
    default:
      return TargetType::kBFloat16;
  }
}

// Binds the operands of a call to the arrays of the same names. All arrays have the shape of the
// first output, and their strides may be 0.
using NamedArrays = std::map<std::string, py::array>;

template <typename Params>
void bind_arrays(Params& params, const std::string& first, const NamedArrays& arrays,
                 const std::vector<int>& dims) {
  const py::array& like = arrays.at(first);
  params.dtype = dtype_of(like);
  const Shape shape(like, dims);
  std::map<std::string, Array> bound;
  for (const auto& [name, array] : arrays) bound[name] = view(array, like, true);
  vae_fused::testing::bind(params, shape.sizes, shape.summed, bound);
}

void describe(vae_fused::Observations& observations, int kind, const py::dict& options,
              const NamedArrays& arrays) {
  observations.kind = static_cast<vae_fused::LikelihoodKind>(kind);
  observations.options = likelihood_options(options);
  observations.target_type = target_type_of(arrays.at("target"));
}

// Reads the fields of a KlTerm by name. Each field is a number or an array, and beta and capacity
// may be either.
vae_fused::KlTerm kl_term(const std::optional<py::dict>& fields) {
  vae_fused::KlTerm term;
  if (!fields) return term;
  for (const auto& [key, value] : *fields) {
    const auto name = py::cast<std::string>(key);
    void* data = nullptr;
    if (py::isinstance<py::array>(value)) {
      data = const_cast<void*>(py::cast<py::array>(value).data());
    }
    if (name == "samples") {
      const auto samples = py::cast<py::array>(value);
      term.samples = data;
      term.count = samples.size();
      if (samples.ndim() > 0) term.stride = samples.strides(0) / samples.itemsize();
    } else if (name == "factor") {
      term.factor = py::cast<double>(value);
    } else if (name == "results") {
      term.results = py::cast<int64_t>(value);
    } else if (name == "beta") {
      data ? void(term.beta = data) : void(term.beta_value = py::cast<double>(value));
    } else if (name == "capacity") {
      term.has_capacity = true;
      data ? void(term.capacity = data) : void(term.capacity_value = py::cast<double>(value));
    } else if (name == "loss") {
      term.loss = data;
    } else if (name == "kl") {
      term.kl = data;
    } else if (name == "grad_loss") {
      term.grad_loss = data;
    } else if (name == "grad_kl") {
      term.grad_kl = data;
    } else if (name == "grad_samples") {
      term.grad_samples = data;
    } else if (name == "grad_beta") {
      term.grad_beta = data;
    } else {
      throw std::invalid_argument(name);
    }
  }
  return term;
}

void nll(int kind, const py::dict& options, const NamedArrays& arrays, const std::vector<int>& dims,
         double factor, const py::array& result, const std::optional<py::dict>& kl,
         const Stream* stream) {
  vae_fused::NllParams params;
  describe(params.observations, kind, options, arrays);
  bind_arrays(params, "output", arrays, dims);
  Scratch partials(params.space.tiles);
  params.nll = {const_cast<void*>(result.data()), factor, nullptr};
  if (params.space.tiles_per_row > 1) params.nll.partials = partials.data();
  params.kl = kl_term(kl);
  check(vae_fused::cuda::nll(params, handle_of(stream)));
}

// With `dot`, it calls softmax_dot, whose rows extend along `dims`. With `value`, it also computes
// the value of nll.
void nll_backward(int kind, const py::dict& options, const NamedArrays& arrays,
                  const std::vector<int>& dims, double factor, const MaybeArray& dot,
                  const MaybeArray& value, const std::optional<py::dict>& kl,
                  const Stream* stream) {
  vae_fused::NllBackwardParams params;
  describe(params.observations, kind, options, arrays);
  params.factor = factor;
  bind_arrays(params, "output", arrays, dims);
  Scratch partials(dot ? params.space.tiles : vae_fused::cuda::partials_of(params));
  if (!dot) {
    params.partials = partials.data();
    params.kl = kl_term(kl);
    Scratch values(value ? vae_fused::cuda::value_partials_of(params) : 0);
    if (value) params.nll = {pointer<void>(value), 1.0, values.data()};
    return check(vae_fused::cuda::nll_backward(params, handle_of(stream)));
  }
  params.dot = {pointer<void>(dot), 1.0, nullptr};
  if (params.space.tiles_per_row > 1) params.dot.partials = partials.data();
  check(vae_fused::cuda::softmax_dot(params, handle_of(stream)));
}

void softmax_rows(const NamedArrays& arrays, const std::vector<int>& dims,
                  const MaybeArray& library, const py::array& row_max, const py::array& row_shift,
                  const Stream* stream) {
  vae_fused::SoftmaxParams params;
  bind_arrays(params, "logits", arrays, dims);
  Scratch partials(2 * params.space.tiles);
  params.library = pointer<void>(library);
  params.row_max = const_cast<void*>(row_max.data());
  params.row_shift = const_cast<void*>(row_shift.data());
  if (params.space.tiles_per_row > 1) params.partials = partials.data();
  check(vae_fused::cuda::softmax_rows(params, handle_of(stream)));
}

void kl_backward(const std::string& dtype, const py::dict& kl, const Stream* stream) {
  vae_fused::NllBackwardParams params;
  params.dtype = dtype == "float64" ? DType::kFloat64 : DType::kFloat32;
  params.kl = kl_term(kl);
  check(vae_fused::cuda::kl_backward(params, handle_of(stream)));
}

void scale_gradients(const std::vector<py::array>& buffers, const py::array& factor,
                     const std::optional<py::dict>& kl, const Stream* stream) {
  vae_fused::GradientBuffers params;
  for (size_t k = 0; k < buffers.size(); ++k) {
    params.buffers[k] = {const_cast<void*>(buffers[k].data()), dtype_of(buffers[k]),
                         buffers[k].size()};
  }
  params.factor = factor.data();
  params.factor_dtype = dtype_of(factor);
  params.kl = kl_term(kl);
  check(vae_fused::cuda::scale_gradients(params, handle_of(stream)));
}

void bind_likelihoods(py::module_& m) {
  m.def("nll", &nll, "kind"_a, "options"_a, "arrays"_a, py::kw_only(), "dims"_a, "factor"_a,
        "result"_a, "kl"_a = py::none(), "stream"_a = nullptr);
  m.def("nll_backward", &nll_backward, "kind"_a, "options"_a, "arrays"_a, py::kw_only(), "dims"_a,
        "factor"_a, "dot"_a = py::none(), "value"_a = py::none(), "kl"_a = py::none(),
        "stream"_a = nullptr);
  m.def("kl_backward", &kl_backward, "dtype"_a, "kl"_a, py::kw_only(), "stream"_a = nullptr);
  m.def("scale_gradients", &scale_gradients, "buffers"_a, "factor"_a, py::kw_only(),
        "kl"_a = py::none(), "stream"_a = nullptr);
  m.def("softmax_rows", &softmax_rows, "arrays"_a, py::kw_only(), "dims"_a,
        "library"_a = py::none(), "row_max"_a, "row_shift"_a, "stream"_a = nullptr);
}

// -------------------------------------------------------------------------------------------------
// The emulator
// -------------------------------------------------------------------------------------------------

// Sets the function that runs launches in place of the emulated device. None removes it. Its
// arguments are the offset of the kernel's host function in this module, the number of blocks, the
// bytes of each argument, and the extents of the Scratch objects. An exception becomes a fault of
// the launch.
void set_executor(const py::object& executor) {
  if (executor.is_none()) return emu::set_executor({});
  emu::set_executor([executor](const emu::Work& work) -> std::string {
    Dl_info here;
    if (!dladdr(reinterpret_cast<const void*>(&set_executor), &here)) return "dladdr failed";
    const auto offset =
        reinterpret_cast<uintptr_t>(work.kernel) - reinterpret_cast<uintptr_t>(here.dli_fbase);
    py::list arguments;
    for (const emu::Argument& argument : work.arguments) {
      arguments.append(py::bytes(static_cast<const char*>(argument.data), argument.size));
    }
    std::vector<std::pair<uintptr_t, uintptr_t>> scratch;
    for (const Scratch* of : Scratch::live()) scratch.push_back(of->extent());
    try {
      executor(offset, work.grid.x, arguments, scratch);
    } catch (const py::error_already_set& error) {
      return error.what();
    }
    return "";
  });
}

void bind_emulator(py::module_& m) {
  struct Graph {
    emu::Graph launches;
  };
  py::class_<Stream>(m, "Stream").def(py::init());
  py::class_<Graph>(m, "Graph")
      .def(
          "replay",
          [](const Graph& self, const Stream* stream) {
            check(emu::replay(self.launches, handle_of(stream)));
          },
          "stream"_a = nullptr)
      .def("__len__", [](const Graph& self) { return self.launches.size(); });
  m.def(
      "configure",
      [](uint64_t seed, int sm_count, bool deferred, bool large, int enough_blocks) {
        emu::reseed(seed);
        emu::config().sm_count = sm_count;
        emu::config().deferred = deferred;
        emu::config().enough_blocks = enough_blocks;
        vae_fused::testing::large = large;
      },
      "seed"_a = 1, "sm_count"_a = 132, "deferred"_a = false, "large"_a = false,
      "enough_blocks"_a = emu::Config().enough_blocks);
  m.def("set_executor", &set_executor, "executor"_a);
  m.def("begin_capture", [](const Stream& stream) { emu::begin_capture(stream.handle); });
  m.def("end_capture", [](const Stream& stream) { return Graph{emu::end_capture(stream.handle)}; });
  m.def("synchronize", [] { check(emu::synchronize()); });
  m.def("launches", &emu::launches);
}

void bind_probes(py::module_& m) {
  using probes::Fault;
  py::enum_<Fault>(m, "Fault")
      .value("none", Fault::kNone)
      .value("missing_barrier", Fault::kMissingBarrier)
      .value("deadlock", Fault::kDeadlock)
      .value("divergent_barrier", Fault::kDivergentBarrier)
      .value("absent_lane", Fault::kAbsentLane);
  m.def(
      "sum",
      [](Fault fault, py::array_t<float> x, py::array_t<float> partials,
         py::array_t<uint32_t> ticket, py::array_t<float> out, const Stream* stream) {
        check(probes::sum(fault, x.data(), static_cast<int>(x.size()), partials.mutable_data(),
                          ticket.mutable_data(), out.mutable_data(),
                          static_cast<int>(partials.size()), handle_of(stream)));
      },
      "fault"_a, "x"_a, "partials"_a, "ticket"_a, "out"_a, "stream"_a = nullptr);
  m.def("warp", [](int threads, int width) {
    py::array_t<uint32_t> out({threads, 8});
    check(probes::warp(threads, width, out.mutable_data()));
    return out;
  });
  m.def("early_exit", [](int threads) {
    py::array_t<int32_t> out(threads);
    check(probes::early_exit(threads, out.mutable_data()));
    return out;
  });
  m.def("order", [](unsigned x, unsigned y, unsigned z) {
    py::array_t<uint32_t> out(static_cast<py::ssize_t>(x) * y * z);
    uint32_t count = 0;
    check(probes::order(dim3(x, y, z), out.mutable_data(), &count, nullptr));
    return out;
  });
  m.def("coarse_normals", [](uint64_t seed, py::ssize_t n) {
    py::array_t<float> out(n);
    probes::coarse_normals(seed, out.mutable_data(), n);
    return out;
  });
  m.def("coarse_exponentials", [](Values<float> x) {
    py::array_t<float> out({x.size(), py::ssize_t{2}});
    probes::coarse_exponentials(x.data(), out.mutable_data(), x.size());
    return out;
  });
  m.def("to_half", [](Values<float> x) {
    py::array_t<uint16_t> out(x.size());
    probes::to_half(x.data(), out.mutable_data(), x.size());
    return out;
  });
  m.def("from_half", [](Values<uint16_t> x) {
    py::array_t<float> out(x.size());
    probes::from_half(x.data(), out.mutable_data(), x.size());
    return out;
  });
  m.def("to_bfloat16", [](Values<float> x) {
    py::array_t<uint16_t> out(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
    probes::to_bfloat16(x.data(), out.mutable_data(), x.size());
    return out;
  });
  m.def("from_bfloat16", [](Values<uint16_t> x) {
    py::array_t<float> out(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
    probes::from_bfloat16(x.data(), out.mutable_data(), x.size());
    return out;
  });
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.def("likelihood_variants", &likelihood_variants);
  m.def("likelihood", &likelihood<float>, "variant"_a, "kind"_a, "options"_a,
        py::arg("inputs").noconvert());
  m.def("likelihood", &likelihood<double>, "variant"_a, "kind"_a, "options"_a,
        py::arg("inputs").noconvert());
  bind_math<float>(m, "normals32");
  bind_math<double>(m, "normals64");
  bind_noise<float>(m, "noise32");
  bind_noise<double>(m, "noise64");
  m.def("polar", mapped<float>(&maths::polar, 2), py::arg().noconvert());
  m.def("philox", &philox, "seed"_a, "first"_a, "blocks"_a);

  auto emulator = m.def_submodule("emulator");
  bind_emulator(emulator);
  auto probes = m.def_submodule("probes");
  bind_probes(probes);

  m.def("is_of_earlier_work", &vae_fused::cuda::is_of_earlier_work);
  bind_likelihoods(m);
  m.def("space", &space_of, "mu"_a, "dims"_a);
  m.def("divide", [](int64_t n, int64_t d) { return n / vae_fused::divisor(d); });
  m.def("divide32",
        [](uint32_t n, uint32_t d) { return vae_fused::quotient(n, vae_fused::divisor_of(d)); });
  m.def("divide_small", [](uint32_t n, uint32_t d) { return n / vae_fused::divisor(d); });
  m.def("forward", &forward, "device"_a, "mu"_a, "raw"_a, py::kw_only(), "dims"_a,
        "eps"_a = py::none(), "z"_a = py::none(), "kl"_a = py::none(), "partials"_a = py::none(),
        "key_out"_a = py::none(), "key"_a = std::pair<uint64_t, uint64_t>(0, 0),
        "key_pointers"_a = py::none(), "shift"_a = 0, "kl_factor"_a = 1.0,
        "prior_mean"_a = py::none(), "prior_raw"_a = py::none(), "mask"_a = py::none(),
        "latent_options"_a = py::dict(), "scalars"_a = py::dict(), "stream"_a = nullptr);
  m.def("stats_sizes", &stats_sizes, "device"_a, "mu"_a, "dims"_a);
  m.def("stats", &stats, "device"_a, "mu"_a, "raw"_a, py::kw_only(), "dims"_a, "kl"_a, "mean"_a,
        "variance"_a, "clamped"_a, "non_finite"_a, "partials"_a, "prior_mean"_a = py::none(),
        "prior_raw"_a = py::none(), "mask"_a = py::none(), "latent_options"_a = py::dict(),
        "scalars"_a = py::dict(), "stream"_a = nullptr);
  m.def("select_kernel", &select_kernel, "mu"_a, "raw"_a, "z"_a, "dims"_a);
  m.def("multi", &multi, "device"_a, "mu"_a, "raw"_a, "out"_a, "grads"_a, "more"_a, "kl"_a,
        "partials"_a, "weights"_a, "key"_a, "latent_options"_a = py::dict(),
        "scalars"_a = py::dict(), "prior_mean"_a = py::none(), "prior_raw"_a = py::none(),
        "stream"_a = nullptr);
  m.def("backward", &backward, "device"_a, "mu"_a, "raw"_a, py::kw_only(), "dims"_a,
        "eps"_a = py::none(), "grad_z"_a = py::none(), "grad_kl"_a = py::none(),
        "grad_kl_stride"_a = 1, "grad_mu"_a = py::none(), "grad_raw"_a = py::none(),
        "grad_eps"_a = py::none(), "key"_a = std::pair<uint64_t, uint64_t>(0, 0),
        "key_pointers"_a = py::none(), "shift"_a = 0, "kl_factor"_a = 1.0,
        "prior_mean"_a = py::none(), "prior_raw"_a = py::none(), "mask"_a = py::none(),
        "grad_prior_mean"_a = py::none(), "grad_prior_raw"_a = py::none(),
        "latent_options"_a = py::dict(), "scalars"_a = py::dict(), "stream"_a = nullptr);
}
