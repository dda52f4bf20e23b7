// The Python module `_native`: the mathematics on arrays, the kernels of both devices on arrays of
// any strides, the emulator's controls and its probes. Arrays are float32, float64, float16, or
// uint16 for bfloat16; the caller owns them, and under deferred execution keeps them alive.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "cpu/noise.h"
#include "maths.h"
#include "params.h"
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

// The mathematics
// -------------------------------------------------------------------------------------------------

template <typename T>
using Values = py::array_t<T, py::array::c_style | py::array::forcecast>;

// [..., per]: `per` results of each value.
template <typename T>
auto mapped(void (*function)(const T*, T*, int64_t), int per) {
  return [=](py::array_t<T, py::array::c_style> x) {
    py::array_t<T> out({x.size(), static_cast<py::ssize_t>(per)});
    function(x.data(), out.mutable_data(), x.size());
    return out;
  };
}

// One overload per precision: the dtype of the array decides.
template <typename T>
void bind_math(py::module_& m, const char* normals_name) {
  m.def("scale", mapped<T>(&maths::scale, 2), py::arg().noconvert());
  m.def("log", mapped<T>(&maths::log, 1), py::arg().noconvert());
  m.def("excess", mapped<T>(&maths::excess, 2), py::arg().noconvert());
  m.def(
      normals_name,
      [](uint64_t seed, uint64_t offset, uint64_t first, py::ssize_t n) {
        py::array_t<T> out(n);
        maths::normals(seed, offset, first, out.mutable_data(), n);
        return out;
      },
      "seed"_a, "offset"_a, "first"_a, "n"_a);
}

// The normals as the CPU kernels make them, for the baseline.
template <typename T>
void bind_noise(py::module_& m, const char* name) {
  using vae_fused::Key;
  namespace baseline = vae_fused::cpu::baseline;
  m.def(
      name,
      [](uint64_t seed, uint64_t offset, uint64_t first, py::ssize_t n) {
        py::array_t<T> out(n);
        baseline::fill(Key{seed, offset}, first, static_cast<int>(n), out.mutable_data());
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

Array view(const MaybeArray& array, const py::array& like) {
  if (!array) return {};
  if (!array->dtype().is(like.dtype()) || array->ndim() != like.ndim()) {
    throw std::invalid_argument("arrays of a call have one dtype and one number of dimensions");
  }
  Array result{const_cast<void*>(array->data()), {}};
  for (int d = 0; d < array->ndim(); ++d) {
    if (array->shape(d) != like.shape(d)) throw std::invalid_argument("shapes differ");
    result.strides.push_back(array->strides(d) / array->itemsize());
  }
  return result;
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

// See RngKey. `pointers`: seed and offset in memory.
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
  cudaGetLastError();  // reported, so forgotten
  throw std::runtime_error(fault.empty() ? cudaGetErrorString(code) : fault);
}

template <typename Params>
void call(const std::string& device, const Params& params,
          void (*on_cpu)(const Params&, vae_fused::cpu::ParallelFor),
          int (*on_cuda)(const Params&, void*), const Stream* stream) {
  if (device == "cpu") return on_cpu(params, serial_for);
  if (device != "cuda" || !on_cuda) throw std::invalid_argument("no such device: " + device);
  check(on_cuda(params, handle_of(stream)));
}

#if defined(HAS_CUDA_KERNELS)
constexpr auto kCudaForward = &vae_fused::cuda::forward;
constexpr auto kCudaBackward = &vae_fused::cuda::backward;
#else
constexpr int (*kCudaForward)(const vae_fused::ForwardParams&, void*) = nullptr;
constexpr int (*kCudaBackward)(const vae_fused::BackwardParams&, void*) = nullptr;
#endif

py::dict space_of(const py::array& mu, const std::vector<int>& dims) {
  vae_fused::Operand operand;
  const Array array = view(mu, mu);
  const Shape shape(mu, dims);
  const auto space = make_space(shape.sizes, shape.summed, {{&array, &operand}});
  return py::dict("rows"_a = space.rows, "cols"_a = space.cols, "tiles"_a = space.tiles,
                  "tiles_per_row"_a = space.tiles_per_row);
}

void forward(const std::string& device, const py::array& mu, const py::array& logvar,
             const std::vector<int>& dims, const MaybeArray& eps, const MaybeArray& z,
             const MaybeArray& kl, const MaybeArray& partials, const MaybeArray& key_out,
             std::pair<uint64_t, uint64_t> key, const MaybeArray& key_pointers, uint32_t shift,
             double kl_scale, const Stream* stream) {
  vae_fused::ForwardParams params;
  params.dtype = dtype_of(mu);
  params.key = make_key(key, key_pointers, shift);
  params.kl_scale = kl_scale;
  const Array arrays[] = {view(mu, mu), view(logvar, mu), view(eps, mu), view(z, mu)};
  const Shape shape(mu, dims);
  params.space = make_space(shape.sizes, shape.summed,
                            {{&arrays[0], &params.mu},
                             {&arrays[1], &params.logvar},
                             {&arrays[2], &params.eps},
                             {&arrays[3], &params.z}});
  params.kl = pointer<void>(kl);
  if (params.space.tiles_per_row > 1) params.partials = pointer<double>(partials);
  params.key_out = pointer<uint64_t>(key_out);
  call(device, params, &vae_fused::cpu::forward, kCudaForward, stream);
}

void backward(const std::string& device, const py::array& mu, const py::array& logvar,
              const std::vector<int>& dims, const MaybeArray& eps, const MaybeArray& grad_z,
              const MaybeArray& grad_kl, int64_t grad_kl_stride, const MaybeArray& grad_mu,
              const MaybeArray& grad_logvar, const MaybeArray& grad_eps,
              std::pair<uint64_t, uint64_t> key, const MaybeArray& key_pointers, uint32_t shift,
              double kl_scale, const Stream* stream) {
  vae_fused::BackwardParams params;
  params.dtype = dtype_of(mu);
  params.key = make_key(key, key_pointers, shift);
  params.kl_scale = kl_scale;
  params.grad_kl = pointer<void>(grad_kl);
  params.grad_kl_stride = grad_kl_stride;
  const Array arrays[] = {view(mu, mu),      view(logvar, mu),  view(eps, mu),
                          view(grad_z, mu),  view(grad_mu, mu), view(grad_logvar, mu),
                          view(grad_eps, mu)};
  const Shape shape(mu, dims);
  params.space = make_space(shape.sizes, shape.summed,
                            {{&arrays[0], &params.mu},
                             {&arrays[1], &params.logvar},
                             {&arrays[2], &params.eps},
                             {&arrays[3], &params.grad_z},
                             {&arrays[4], &params.grad_mu},
                             {&arrays[5], &params.grad_logvar},
                             {&arrays[6], &params.grad_eps}});
  call(device, params, &vae_fused::cpu::backward, kCudaBackward, stream);
}

// -------------------------------------------------------------------------------------------------
// The emulator
// -------------------------------------------------------------------------------------------------

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
      [](uint64_t seed, int sm_count, bool deferred) {
        emu::reseed(seed);
        emu::config().sm_count = sm_count;
        emu::config().deferred = deferred;
      },
      "seed"_a = 1, "sm_count"_a = 132, "deferred"_a = false);
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
  bind_math<float>(m, "normals32");
  bind_math<double>(m, "normals64");
  bind_noise<float>(m, "noise32");
  bind_noise<double>(m, "noise64");
  m.def("sincos", mapped<float>(&maths::sincos, 2), py::arg().noconvert());
  m.def("philox", &philox, "seed"_a, "first"_a, "blocks"_a);

  auto emulator = m.def_submodule("emulator");
  bind_emulator(emulator);
  auto probes = m.def_submodule("probes");
  bind_probes(probes);

  m.attr("has_cuda_kernels") = kCudaForward != nullptr;
  m.def("space", &space_of, "mu"_a, "dims"_a);
  m.def("divide", [](int64_t n, int64_t d) { return n / vae_fused::divisor(d); });
  m.def("forward", &forward, "device"_a, "mu"_a, "logvar"_a, py::kw_only(), "dims"_a,
        "eps"_a = py::none(), "z"_a = py::none(), "kl"_a = py::none(), "partials"_a = py::none(),
        "key_out"_a = py::none(), "key"_a = std::pair<uint64_t, uint64_t>(0, 0),
        "key_pointers"_a = py::none(), "shift"_a = 0, "kl_scale"_a = 1.0, "stream"_a = nullptr);
  m.def("backward", &backward, "device"_a, "mu"_a, "logvar"_a, py::kw_only(), "dims"_a,
        "eps"_a = py::none(), "grad_z"_a = py::none(), "grad_kl"_a = py::none(),
        "grad_kl_stride"_a = 1, "grad_mu"_a = py::none(), "grad_logvar"_a = py::none(),
        "grad_eps"_a = py::none(), "key"_a = std::pair<uint64_t, uint64_t>(0, 0),
        "key_pointers"_a = py::none(), "shift"_a = 0, "kl_scale"_a = 1.0, "stream"_a = nullptr);
}
