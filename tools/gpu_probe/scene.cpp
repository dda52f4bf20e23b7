// The tensors of a timed call: how they are made, launched on and checked.
#include "scene.h"

#include "math/latent/gaussian.h"
#include "math/normal.h"

namespace vae_fused::probe {
namespace {

constexpr uint64_t kSeed = 0x0123456789ABCDEFu, kOffset = 7;
constexpr float kScale = 0.25f;
constexpr int64_t kSpacerBytes = int64_t{1} << 27;    // some 50 us on an H200
constexpr int64_t kPattern = (int64_t{1} << 20) - 1;  // odd, so that mu and raw differ

int64_t sets_of(const SceneSpec& spec, const Device& device) {
  const int64_t wanted = 4 * device.l2_bytes / spec.bytes() + 1;
  const int64_t most = device.memory_bytes / 4 / spec.bytes();
  return std::max<int64_t>(2, std::min(wanted, most));
}

// Calls visit(S{}) with the type of a dtype in memory.
template <typename Visit>
auto with_storage(DType dtype, const Visit& visit) {
  if (dtype == DType::kFloat32) return visit(float{});
  if (dtype == DType::kFloat64) return visit(double{});
  return dtype == DType::kFloat16 ? visit(math::Half{}) : visit(math::BFloat16{});
}

Tolerance tolerance_of(DType dtype) {
  return with_storage(dtype, [](auto s) { return kTolerance<decltype(s)>; });
}

}  // namespace

Scene::Strides Scene::strides_of(const SceneSpec& spec) {
  const int64_t n = spec.elements(), c = spec.channels(), p = spec.pixels();
  const int64_t images = n / (c * p);
  switch (spec.view) {
    case View::kContiguous:
      return {{n}, {1}, {1}, {true}, 0};
    case View::kRows256:
      return {{n / 256, 256}, {256, 1}, {256, 1}, {false, true}, 0};
    case View::kChunked:
      return {{images, c, p}, {2 * c * p, p, 1}, {c * p, p, 1}, {true, true, true}, c * p};
    case View::kChannelsLastChunk:
      return {{images, c, p}, {2 * c * p, 1, 2 * c}, {c * p, 1, c}, {true, true, true}, c};
    default:
      return {{images, c, p}, {c * p, 1, c}, {c * p, 1, c}, {true, true, true}, 0};
  }
}

Scene::Scene(const SceneSpec& spec, const Device& device, const Sizes& sizes, bool wrong_key)
    : spec_(spec),
      strides_(strides_of(spec)),
      sizes_(sizes),
      wrong_key_(wrong_key),
      kl_(static_cast<size_t>(spec.rows()) * 4),
      grad_kl_(static_cast<size_t>(spec.rows()) * 4),
      partials_(static_cast<size_t>(tiles_of(spec.elements())) * 8),
      counter_(8),
      spacer_(static_cast<size_t>(std::min<int64_t>(kSpacerBytes, 8 * device.l2_bytes))) {
  const std::vector<float> grad_kl(static_cast<size_t>(spec.rows()), 0.5f);
  grad_kl_.upload(grad_kl.data());
  check(cudaMemset(counter_.data(), 0, counter_.bytes()), "cudaMemset");
  const int64_t sets = 1 + sets_of(spec, device);
  for (int64_t s = 0; s < sets; ++s) {
    sets_.push_back(make_set());
    bind(sets_.back());
    if (s == 0) {
      fill_first();
    } else {
      check(cudaMemcpy(sets_.back().memory->data(), sets_[0].memory->data(),
                       sets_[0].memory->bytes(), cudaMemcpyDeviceToDevice),
            "cudaMemcpy");
    }
  }
  check(launch_shipped(0, nullptr), "the shipped kernel");
  for (int k = 0; k < spec_.writes(); ++k) {
    expected_.push_back(
        std::make_unique<Memory>(static_cast<size_t>(spec_.elements() * spec_.element_bytes())));
    check(cudaMemcpy(expected_[k]->data(), sets_[0].of.out[k], expected_[k]->bytes(),
                     cudaMemcpyDeviceToDevice),
          "cudaMemcpy");
  }
  expected_kl_.resize(static_cast<size_t>(spec.rows()));
  kl_.download(expected_kl_.data());
}

Scene::Set Scene::make_set() const {
  const int64_t bytes = spec_.elements() * spec_.element_bytes();
  Set set;
  set.memory =
      std::make_unique<Memory>(static_cast<size_t>(bytes * (spec_.reads() + spec_.writes())));
  char* next = static_cast<char*>(set.memory->data());
  for (int k = 0; k < spec_.reads(); ++k, next += bytes) set.of.in[k] = next;
  for (int k = 0; k < spec_.writes(); ++k, next += bytes) set.of.out[k] = next;
  if (strides_.raw) set.of.in[1] = set.of.in[0] + strides_.raw * spec_.element_bytes();
  return set;
}

void Scene::bind(Set& set) const {
  DimSet summed;
  for (size_t d = 0; d < strides_.summed.size(); ++d) summed[d] = strides_.summed[d];
  const auto binding = [](const char* data, const std::vector<int64_t>& strides, Operand& operand) {
    return BoundTensor{const_cast<char*>(data), strides.data(), &operand};
  };
  const auto prepare = [&](auto& p, std::vector<BoundTensor> others) {
    p.dtype = spec_.dtype;
    p.key.seed = kSeed;
    p.key.offset = kOffset;
    others.push_back(binding(set.of.in[0], strides_.in, p.gaussians.mu));
    others.push_back(binding(set.of.in[1], strides_.in, p.gaussians.raw));
    if (!make_space(strides_.sizes, summed, others, p.space)) {
      throw std::runtime_error("too many dimensions");
    }
  };
  if (spec_.forward()) {
    ForwardParams& p = set.forward;
    prepare(p, {binding(set.of.out[0], strides_.out, p.z)});
    p.kl = {kl_.data(), kScale, static_cast<double*>(partials_.data())};
  } else {
    BackwardParams& p = set.backward;
    prepare(p, {binding(set.of.in[2], strides_.out, p.grad_z),
                binding(set.of.out[0], strides_.out, p.grad_mu),
                binding(set.of.out[1], strides_.out, p.grad_raw)});
    p.grad_kl = {grad_kl_.data(), 1, kScale};
  }
}

// The host makes one pattern, which copies on the device repeat.
void Scene::fill_first() const {
  const int64_t element = spec_.element_bytes(), elements = spec_.elements() * spec_.reads();
  const int64_t made = std::min(elements, kPattern);
  char* const to = static_cast<char*>(sets_[0].memory->data());
  with_storage(spec_.dtype, [&](auto s) {
    std::vector<decltype(s)> values(static_cast<size_t>(made));
    for (size_t i = 0; i < values.size(); ++i) {
      const uint64_t word = (i + 1000003) * 0x9E3779B97F4A7C15u;
      values[i] = narrowed<decltype(s)>(static_cast<double>(word >> 40) / (1 << 22) - 2);
    }
    check(cudaMemcpy(to, values.data(), values.size() * sizeof s, cudaMemcpyHostToDevice),
          "cudaMemcpy");
  });
  for (int64_t done = made; done < elements; done *= 2) {
    const size_t more = static_cast<size_t>(std::min(done, elements - done) * element);
    check(cudaMemcpy(to + done * element, to, more, cudaMemcpyDeviceToDevice), "cudaMemcpy");
  }
}

int Scene::launch_shipped(int set, cudaStream_t stream) const {
  const Set& of = sets_[static_cast<size_t>(set)];
  return spec_.forward() ? cuda::forward(of.forward, stream) : cuda::backward(of.backward, stream);
}

VariantCall Scene::call(int set, Grid grid, Ticket ticket) const {
  return {sets_[static_cast<size_t>(set)].of,
          spec_.dtype,
          spec_.elements(),
          kSeed,
          kOffset,
          kScale,
          static_cast<const float*>(grad_kl_.data()),
          static_cast<float*>(kl_.data()),
          static_cast<double*>(partials_.data()),
          static_cast<unsigned int*>(counter_.data()),
          grid,
          ticket,
          wrong_key_};
}

int Scene::launch_variant(const Variant& variant, Grid grid, Ticket ticket, int set,
                          cudaStream_t stream) const {
  return launch(variant, call(set, grid, ticket), sizes_, stream);
}

int Scene::launch_patches(const PatchVariant& variant, int set, cudaStream_t stream) const {
  return launch(variant, call(set, Grid::kMerged, Ticket::kAcquireRelease), spec_.channels(),
                spec_.pixels(), sizes_, stream);
}

int Scene::launch_roof(const Roof& roof, int set, cudaStream_t stream) const {
  Streams of = sets_[static_cast<size_t>(set)].of;
  const int64_t bytes = spec_.elements() * spec_.element_bytes();
  of.in[1] = of.in[0] + bytes;  // also where mu and raw are interleaved
  return roof.launch(of, bytes, sizes_.sms, stream);
}

int Scene::launch_copy(int set, cudaStream_t stream) const {
  const Memory& memory = *sets_[static_cast<size_t>(set)].memory;
  char* const data = static_cast<char*>(memory.data());
  const size_t half = memory.bytes() / 2;
  return cudaMemcpyAsync(data + half, data, half, cudaMemcpyDeviceToDevice, stream);
}

int Scene::launch_spacer(cudaStream_t stream) const {
  char* const data = static_cast<char*>(spacer_.data());
  const size_t half = spacer_.bytes() / 2;
  return cudaMemcpyAsync(data, data + half, half, cudaMemcpyDeviceToDevice, stream);
}

double Scene::read(const char* data, int64_t at) const {
  return with_storage(spec_.dtype, [&](auto s) {
    check(cudaMemcpy(&s, data + at * spec_.element_bytes(), sizeof s, cudaMemcpyDeviceToHost),
          "cudaMemcpy");
    return widened(s);
  });
}

Worst Scene::spot_check() const {
  constexpr int64_t kPlaces = 255;
  clear();
  check(launch_shipped(0, nullptr), "launch");
  const Streams& of = sets_[0].of;
  const int64_t n = spec_.elements();
  const math::Seed seed(kSeed);
  const Tolerance tolerance = tolerance_of(spec_.dtype);
  const double grad_kl = 0.5 * static_cast<double>(kScale);
  Worst worst;
  for (int64_t k = 0; k <= kPlaces; ++k) {
    const int64_t i = k == kPlaces ? n - 1 : n / kPlaces * k + k % 97;  // its index in the noise
    int64_t rest = i, in = 0, out = 0;
    for (size_t d = strides_.sizes.size(); d-- > 0;) {
      const int64_t at = rest % strides_.sizes[d];
      rest /= strides_.sizes[d];
      in += at * strides_.in[d];
      out += at * strides_.out[d];
    }
    const double mu = read(of.in[0], in), x = read(of.in[1], in);
    const double eps =
        static_cast<double>(math::normal_at<float>(seed, kOffset, static_cast<uint64_t>(i)));
    const double sigma = std::exp(0.5 * x);
    if (spec_.forward()) {
      worst.compare(read(of.out[0], out), mu + sigma * eps, tolerance, i);
    } else {
      const double gz = read(of.in[2], out);
      worst.compare(read(of.out[0], out), gz + grad_kl * mu, tolerance, i);
      worst.compare(read(of.out[1], out), 0.5 * (gz * eps * sigma + grad_kl * std::expm1(x)),
                    tolerance, i);
    }
  }
  return worst;
}

void Scene::clear() const {
  for (int k = 0; k < spec_.writes(); ++k) {
    check(cudaMemset(sets_[0].of.out[k], 0xFF, expected_[static_cast<size_t>(k)]->bytes()),
          "cudaMemset");
  }
  check(cudaMemset(kl_.data(), 0xFF, kl_.bytes()), "cudaMemset");
}

Agreement Scene::compare() const {
  unsigned int* const count = static_cast<unsigned int*>(counter_.data()) + 1;
  check(cudaMemset(count, 0, sizeof *count), "cudaMemset");
  for (int k = 0; k < spec_.writes(); ++k) {
    const Memory& expected = *expected_[static_cast<size_t>(k)];
    check(count_differences(sets_[0].of.out[k], expected.data(),
                            static_cast<int64_t>(expected.bytes()), count, nullptr),
          "count_differences");
  }
  unsigned int differences = 0;
  check(cudaMemcpy(&differences, count, sizeof differences, cudaMemcpyDeviceToHost), "the results");
  Agreement agreement;
  agreement.identical = differences == 0;
  if (!agreement.identical) {
    with_storage(spec_.dtype, [&](auto s) {
      std::vector<decltype(s)> got(static_cast<size_t>(spec_.elements())), want(got.size());
      for (int k = 0; k < spec_.writes(); ++k) {
        const Memory& expected = *expected_[static_cast<size_t>(k)];
        check(cudaMemcpy(got.data(), sets_[0].of.out[k], expected.bytes(), cudaMemcpyDeviceToHost),
              "cudaMemcpy");
        expected.download(want.data());
        for (size_t i = 0; i < got.size(); ++i) {
          agreement.worst.compare(widened(got[i]), widened(want[i]), kTolerance<decltype(s)>,
                                  static_cast<int64_t>(i));
        }
      }
    });
  }
  if (spec_.forward()) {
    std::vector<float> kl(expected_kl_.size());
    kl_.download(kl.data());
    for (size_t r = 0; r < kl.size(); ++r) {
      agreement.kl.compare(static_cast<double>(kl[r]), static_cast<double>(expected_kl_[r]),
                           kKlTolerance<float>, static_cast<int64_t>(r));
    }
  }
  return agreement;
}

}  // namespace vae_fused::probe
