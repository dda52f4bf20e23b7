// The cases that run under a sanitizer. Each sanitizer has its own program, and each run executes
// one case.
//
//   cases sum:FAULT          the probe with a planted fault, or "none"
//   cases streams            launches on two streams, interleaved
//   cases forward [DTYPE]    the forward kernels on small calls of every shape class
//   cases backward [DTYPE]   the backward kernels on small calls of every shape class
//   cases nll                the kernels of the likelihoods, see nll_cases.h
//
// Each array of a forward or backward call is in a heap block of exactly its size, and the results
// are compared with those of the CPU kernels.
//
// The program prints "ok" and exits with 0. After a wrong result or an emulator fault, it exits
// with 1. A sanitizer has its own exit codes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>

#include "math/storage.h"
#include "nll_cases.h"
#include "probes.h"
#include "space.h"

namespace {

using namespace vae_fused;
using testing::Array;

int failures = 0;

void expect(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  const std::string fault = emu::take_fault();
  std::printf("FAILED: %s\n%s\n", what.c_str(), fault.c_str());
  if (fault.empty()) return;
  // Some threads are stuck and still use objects that a normal exit would free.
  std::fflush(stdout);
  std::_Exit(1);
}

// -------------------------------------------------------------------------------------------------
// Probes
// -------------------------------------------------------------------------------------------------

// A heap block of exactly n values, so that a sanitizer detects accesses past its end.
template <typename T>
using Block = std::unique_ptr<T[]>;

struct Sum {
  static constexpr int n = 1001, grid = 3;
  Block<float> x{new float[n]}, partials{new float[grid]}, out{new float[1]};
  Block<unsigned int> ticket{new unsigned int[1]()};

  Sum() {
    for (int i = 0; i < n; ++i) x[i] = static_cast<float>(i % 7);
  }
  cudaError_t launch(probes::Fault fault, emu::Stream* stream = nullptr) {
    return probes::sum(fault, x.get(), n, partials.get(), ticket.get(), out.get(), grid, stream);
  }
  bool right() const { return out[0] == 3003.0f; }
};

void run_sum(const std::string& name) {
  using probes::Fault;
  const std::map<std::string, Fault> faults = {
      {"none", Fault::kNone},
      {"missing_barrier", Fault::kMissingBarrier},
      {"missing_syncwarp", Fault::kMissingSyncwarp},
      {"missing_release_fence", Fault::kMissingReleaseFence},
      {"missing_acquire_fence", Fault::kMissingAcquireFence},
      {"off_by_one", Fault::kOffByOne},
      {"shared_overrun", Fault::kSharedOverrun},
      {"misaligned", Fault::kMisaligned},
      {"deadlock", Fault::kDeadlock},
  };
  Sum sum;
  for (int launch = 0; launch < 4; ++launch) {
    expect(sum.launch(faults.at(name)) == cudaSuccess, "launch");
    expect(sum.right(), "sum");
  }
}

void run_streams() {
  emu::config().deferred = true;
  emu::Stream* const streams[] = {emu::create_stream(), emu::create_stream()};
  Sum sums[2];
  for (int launch = 0; launch < 2; ++launch) {
    for (int s = 0; s < 2; ++s) sums[s].launch(probes::Fault::kNone, streams[s]);
  }
  expect(emu::synchronize() == cudaSuccess, "synchronize");
  expect(sums[0].right() && sums[1].right(), "sums");
}

// -------------------------------------------------------------------------------------------------
// Kernels
// -------------------------------------------------------------------------------------------------

struct Class {
  const char* name;
  std::vector<int64_t> sizes;
  std::vector<bool> summed;
  enum Layout { kDense, kChunked, kTransposed, kShifted, kShiftedRows, kSpaced } layout = kDense;
};

const Class kClasses[] = {
    {"one element", {1}, {true}},
    {"elementwise", {3, 5}, {false, false}},
    {"a few columns", {37, 3}, {false, true}},
    {"a row per sample", {5, 130}, {false, true}},
    {"a full tile", {2, kTile / 2}, {true, true}},
    {"rows of several tiles", {2, kTile + 3}, {false, true}},
    {"one long row", {3, 1, 1367}, {true, true, true}},
    {"longer rows", {2, 4 * kTile + 1}, {false, true}},
    {"many long rows", {8, 2 * kTile + 1}, {false, true}},
    {"chunked", {3, 8, 10}, {true, true, true}, Class::kChunked},
    {"chunked rows", {3, 8, 10}, {false, true, true}, Class::kChunked},
    {"long chunked rows", {2, 4, 1100}, {false, true, true}, Class::kChunked},
    {"odd chunk", {3, 5, 7}, {false, true, true}, Class::kChunked},
    {"chunks longer than a piece", {3, 2, 300}, {true, true, true}, Class::kChunked},
    {"channels last", {2, 6, 35}, {false, true, true}, Class::kTransposed},
    {"deep channels last", {2, 8, 40}, {false, true, true}, Class::kTransposed},
    {"outer summed", {6, 5, 7}, {true, false, true}},
    {"odd channels last", {2, 5, 8}, {false, true, true}, Class::kTransposed},
    {"channels kept last", {2, 6, 8}, {false, false, true}, Class::kTransposed},
    {"runs of half vectors", {3, 2, 5}, {true, true, true}, Class::kChunked},
    {"misaligned", {3, 101}, {true, true}, Class::kShifted},
    {"misaligned rows", {3, 100}, {false, false}, Class::kShiftedRows},
    {"an element between samples", {6, 40}, {false, true}, Class::kSpaced},
};

// Calls in which each block computes several tiles. They run with only the first of the options.
const Class kManyTiles[] = {
    {"many rows of two", {13001, 2}, {false, true}},
    {"many rows of three", {17003, 3}, {false, true}},
    {"many rows of four", {7001, 4}, {false, true}},
    {"many rows of eight", {13001, 8}, {false, true}},
    {"many channels_last rows", {90, 4, 256}, {false, true, true}, Class::kTransposed},
    {"channels_last rows", {12, 4, 1152}, {false, true, true}, Class::kTransposed},
};

int64_t count(const Class& c) {
  int64_t n = 1;
  for (const int64_t size : c.sizes) n *= size;
  return n;
}

template <typename S>
S narrowed(double x) {
  S out;
  if constexpr (sizeof(S) == 8) {
    out = x;
  } else {
    math::narrow(static_cast<float>(x), out);
  }
  return out;
}

// A tensor in its own heap block. A chunked tensor is the second half of a packed tensor along
// dimension 1.
template <typename S>
class Tensor {
 public:
  explicit Tensor(const Class& c, uint64_t fill = 0, int64_t samples = 1) {
    const size_t ndim = c.sizes.size();
    array.strides.assign(ndim, 1);
    int64_t step = 1, begin = c.layout == Class::kShifted ? 1 : 0, end = count(c) + begin;
    const auto place = [&](size_t d) {
      array.strides[d] = step;
      step *= c.sizes[d];
    };
    if (c.layout == Class::kTransposed) {
      place(1);
      for (size_t d = ndim; d-- > 2;) place(d);
      place(0);
    } else {
      for (size_t d = ndim; d-- > 0;) place(d);
    }
    if (c.layout == Class::kChunked) {
      begin = array.strides[0];
      array.strides[0] *= 2;
      end = c.sizes[0] * array.strides[0];
    }
    array.step = end + (c.layout == Class::kSpaced ? 1 : 0);
    size_ = array.step * samples;
    data_.reset(new S[static_cast<size_t>(size_)]);
    // Values in [-2, 2] from a multiplicative sequence. Without `fill`, the tensor gets a value
    // that the kernel must overwrite.
    for (int64_t i = 0; i < size_; ++i) {
      const uint64_t word = (static_cast<uint64_t>(i) + fill * 1000003) * 0x9E3779B97F4A7C15u;
      data_[i] = narrowed<S>(fill ? static_cast<double>(word >> 40) / (1 << 22) - 2 : 77.0);
    }
    array.data = data_.get() + begin;
  }
  Array array;

  // Compares whole blocks, including memory between the elements of the tensor.
  void compare(const Tensor& other, const std::string& what) const {
    const double tolerance = sizeof(S) == 8 ? 1e-12 : sizeof(S) == 4 ? 2e-6 : 0.01;
    for (int64_t i = 0; i < size_; ++i) {
      const double a = math::widen(data_[i]), b = math::widen(other.data_[i]);
      if (std::abs(a - b) <= tolerance * (1 + std::abs(b))) continue;
      return expect(false, what + " at " + std::to_string(i) + ": " + std::to_string(a) + ", not " +
                               std::to_string(b));
    }
  }

 private:
  Block<S> data_;
  int64_t size_;
};

void serial_for(int64_t n, int64_t, cpu::Body body, void* context) { body(context, 0, n); }

enum Asked : unsigned {
  kZ = 1,
  kKl = 2,
  kEps = 4,     // z has explicit noise
  kMasked = 8,  // default options with a mask and a clamp
};

struct Options {
  bool sample, kl, eps, masked;
  int64_t general;  // samples of a call with general options; 0: default options

  constexpr Options(unsigned asked, int64_t general = 0)
      : sample(asked & kZ),
        kl(asked & kKl),
        eps(asked & kEps),
        masked(asked & kMasked),
        general(general) {}
};
constexpr Options kOptions[] = {
    kZ | kKl,      kZ | kKl | kEps,      kZ,      kKl,      kZ | kKl | kMasked, kKl | kMasked,
    {kZ | kKl, 1}, {kZ | kKl | kEps, 2}, {kZ, 3}, {kKl, 1},
};

std::string name_of(const Class& c, const Options& o) {
  return std::string(c.name) + (o.sample ? ", z" : "") + (o.kl ? ", kl" : "") +
         (o.eps ? ", explicit eps" : "") + (o.general ? ", general" : "") +
         (o.masked ? ", masked" : "");
}

// The prior and the mask of a call with general options.
template <typename S>
struct Others {
  Tensor<S> mean, raw;
  Block<uint8_t> bytes;
  Array mask;

  explicit Others(const Class& c) : mean(c, 5), raw(c, 6) {
    const int64_t n = count(c);
    bytes.reset(new uint8_t[static_cast<size_t>(n)]);
    for (int64_t i = 0; i < n; ++i) bytes[i] = i % 5 != 2;
    mask.data = bytes.get();
    mask.strides.assign(c.sizes.size(), 1);
    for (size_t d = c.sizes.size(); d-- > 1;) mask.strides[d - 1] = mask.strides[d] * c.sizes[d];
  }
};

// The arrays of a call's Gaussians.
template <typename S>
std::map<std::string, Array> inputs(const Options& options, const Tensor<S>& mu,
                                    const Tensor<S>& logvar, const Others<S>& others) {
  std::map<std::string, Array> arrays = {{"mu", mu.array}, {"raw", logvar.array}};
  if (options.general) arrays["prior_mean"] = others.mean.array;
  if (options.general) arrays["prior_raw"] = others.raw.array;
  if (options.general || options.masked) arrays["mask"] = others.mask;
  return arrays;
}

Gaussians gaussians_of(const Options& options) {
  Gaussians gaussians;
  if (options.masked) {
    gaussians.options.posterior.low = -0.5;
    gaussians.options.posterior.high = 0.25;
  }
  if (options.general == 0) return gaussians;
  gaussians.samples = options.sample ? options.general : 1;
  gaussians.options.posterior.base = math::ScaleBase::kSoftplus;
  gaussians.options.posterior.std_floor = 0.1;
  gaussians.options.temperature = 0.7;
  return gaussians;
}

RngKey key_for_test() {
  static const uint64_t pointed[] = {0x123456789ABCDEFu, 40};
  RngKey key;
  key.seed_ptr = pointed;
  key.offset_ptr = pointed + 1;
  key.offset = 8;
  key.shift = 2;
  return key;
}

template <typename S>
void forward(DType dtype, const Class& c, const Options& options) {
  using T = math::arithmetic_t<S>;
  const int64_t samples = gaussians_of(options).samples;
  const Tensor<S> mu(c, 1), logvar(c, 2), eps(c, 3, samples);
  const Others<S> others(c);
  Tensor<S> z[2] = {Tensor<S>(c, 0, samples), Tensor<S>(c, 0, samples)};
  Block<T> kl[2];
  Block<double> partials[2];
  Block<uint64_t> key_out[2];
  Space space;
  const int64_t shift = c.layout == Class::kShiftedRows;
  for (const int device : {0, 1}) {
    ForwardParams p;
    p.dtype = dtype;
    p.gaussians = gaussians_of(options);
    p.key = key_for_test();
    p.kl.factor = 0.25;
    std::map<std::string, Array> arrays = inputs(options, mu, logvar, others);
    if (options.eps) arrays["eps"] = eps.array;
    if (options.sample) arrays["z"] = z[device].array;
    testing::bind(p, c.sizes, c.summed, arrays);
    space = p.space;
    kl[device].reset(new T[space.rows + shift]);
    key_out[device].reset(new uint64_t[2]());
    if (options.kl) p.kl.data = kl[device].get() + shift;
    if (options.kl && space.tiles_per_row > 1) {
      partials[device].reset(new double[space.tiles]);
      p.kl.partials = partials[device].get();
    }
    if (options.sample && !options.eps) p.key_out = key_out[device].get();
    if (device == 0) {
      cpu::forward(p, serial_for);
    } else {
      expect(cuda::forward(p, nullptr) == 0, name_of(c, options));
    }
  }
  const std::string name = "forward of " + name_of(c, options);
  z[1].compare(z[0], name + ": z");
  expect(key_out[1][0] == key_out[0][0] && key_out[1][1] == key_out[0][1], name + ": key");
  for (int64_t r = 0; options.kl && r < space.rows; ++r) {
    const double a = kl[1][r + shift], b = kl[0][r + shift];
    expect(std::abs(a - b) <= 2e-6 * std::abs(b), name + ": kl");
  }
}

template <typename S>
void backward(DType dtype, const Class& c, const Options& options) {
  using T = math::arithmetic_t<S>;
  const int64_t samples = gaussians_of(options).samples;
  const Tensor<S> mu(c, 1), logvar(c, 2), eps(c, 3, samples), grad_z(c, 4, samples);
  const Others<S> others(c);
  Tensor<S> grad_mu[2] = {Tensor<S>(c), Tensor<S>(c)};
  Tensor<S> grad_logvar[2] = {Tensor<S>(c), Tensor<S>(c)};
  Tensor<S> grad_eps[2] = {Tensor<S>(c, 0, samples), Tensor<S>(c, 0, samples)};
  Tensor<S> grad_mean[2] = {Tensor<S>(c), Tensor<S>(c)};
  Tensor<S> grad_prior[2] = {Tensor<S>(c), Tensor<S>(c)};
  for (const int64_t stride : {0, 1}) {
    for (const int device : {0, 1}) {
      BackwardParams p;
      p.dtype = dtype;
      p.gaussians = gaussians_of(options);
      p.key = key_for_test();
      p.grad_kl.factor = 0.25;
      std::map<std::string, Array> arrays = inputs(options, mu, logvar, others);
      if (options.eps) arrays["eps"] = eps.array;
      if (options.sample) arrays["grad_z"] = grad_z.array;
      arrays["grad_mu"] = grad_mu[device].array;
      arrays["grad_raw"] = grad_logvar[device].array;
      if (options.eps) arrays["grad_eps"] = grad_eps[device].array;
      if (options.general) {
        arrays["grad_prior_mean"] = grad_mean[device].array;
        arrays["grad_prior_raw"] = grad_prior[device].array;
      }
      testing::bind(p, c.sizes, c.summed, arrays);
      const int64_t values = stride ? p.space.rows : 1;
      const int64_t shift = c.layout == Class::kShiftedRows;
      Block<T> grad_kl(new T[values + shift]);
      for (int64_t r = 0; r < values; ++r) grad_kl[r + shift] = static_cast<T>(0.5 + r % 5);
      if (options.kl) p.grad_kl.data = grad_kl.get() + shift;
      p.grad_kl.stride = stride;
      if (device == 0) {
        cpu::backward(p, serial_for);
      } else {
        expect(cuda::backward(p, nullptr) == 0, name_of(c, options));
      }
    }
    const std::string name = "backward of " + name_of(c, options);
    grad_mu[1].compare(grad_mu[0], name + ": grad_mu");
    grad_logvar[1].compare(grad_logvar[0], name + ": grad_logvar");
    grad_eps[1].compare(grad_eps[0], name + ": grad_eps");
    grad_mean[1].compare(grad_mean[0], name + ": grad_prior_mean");
    grad_prior[1].compare(grad_prior[0], name + ": grad_prior_raw");
  }
}

template <typename S>
void run_kernels(bool is_forward, DType dtype) {
  const auto run = [&](const Class& c, const Options& options) {
    is_forward ? forward<S>(dtype, c, options) : backward<S>(dtype, c, options);
  };
  for (const Class& c : kClasses) {
    for (const Options& options : kOptions) run(c, options);
  }
  for (const Class& c : kManyTiles) run(c, kOptions[0]);
}

void run_kernels(bool is_forward, const std::string& dtype) {
  if (dtype.empty() || dtype == "float32") run_kernels<float>(is_forward, DType::kFloat32);
  if (dtype.empty() || dtype == "float64") run_kernels<double>(is_forward, DType::kFloat64);
  if (dtype.empty() || dtype == "float16") run_kernels<math::Half>(is_forward, DType::kFloat16);
  if (dtype.empty() || dtype == "bfloat16") {
    run_kernels<math::BFloat16>(is_forward, DType::kBFloat16);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "", argument = argc > 2 ? argv[2] : "";
  if (name.rfind("sum:", 0) == 0) {
    run_sum(name.substr(4));
  } else if (name == "streams") {
    run_streams();
  } else if (name == "forward" || name == "backward") {
    run_kernels(name == "forward", argument);
  } else if (name == "nll") {
    run_nll(expect);
  } else {
    expect(false, "no such case: " + name);
  }
  if (failures == 0) std::printf("ok\n");
  return failures != 0;
}
