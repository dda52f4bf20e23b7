// The correctness section: the entry points against the CPU kernels, then the variants and roofs.
#include <algorithm>
#include <functional>

#include "params/latent_multi.h"
#include "scene.h"
#include "sections.h"

namespace vae_fused::probe {
namespace {

// The worst of the outputs of a call, which decides whether it passes.
class Verdict {
 public:
  void add(const std::string& output, const Worst& worst) {
    if (!output_.empty() && worst.share <= worst_.share) return;
    output_ = output;
    worst_ = worst;
  }

  void write(Report& report, Row row, const std::string& name) const {
    row.add("output", output_)
        .add("max_error", worst_.error)
        .add("share_of_tolerance", worst_.share)
        .add("at", worst_.at);
    char text[96];
    std::snprintf(text, sizeof text, ": %s is off by %.2g, %.2g of the tolerance", output_.c_str(),
                  worst_.error, worst_.share);
    report.check(row, worst_.good(), name + text);
  }

 private:
  std::string output_;
  Worst worst_;
};

void write_error(Report& report, Row row, const std::string& name, const std::string& what) {
  report.check(row.add("error", what), false, name + ": " + what);
}

// Runs `check` if `name` is wanted. An exception fails the row. An error from which the device does
// not recover ends the section, because everything after it would fail, too.
void guarded(const Settings& settings, Report& report, const Row& row, const std::string& name,
             const std::function<Verdict()>& check) {
  if (!settings.wants(name)) return;
  if (settings.list) {
    std::printf("correctness: %s\n", name.c_str());
    return;
  }
  try {
    check().write(report, row, name);
  } catch (const std::exception& error) {
    write_error(report, row, name, error.what());
    cudaGetLastError();
    probe::check(cudaDeviceSynchronize(), "the device after a failure");
  }
}

template <typename S>
Verdict check_call(const Case& c, Direction direction, const Faults& faults) {
  Call<S> call(c, faults);
  Verdict verdict;
  if (direction == Direction::kForward) {
    cpu::forward(call.forward(false), serial_for);
    ForwardParams p = call.forward(true);
    Memory key_out(16);
    if (c.request.sample && !c.request.explicit_noise) {
      p.key_out = static_cast<uint64_t*>(key_out.data());
    }
    check(cuda::forward(p, nullptr), "cuda::forward");
    check(cudaDeviceSynchronize(), "forward");
    if (p.key_out) {
      uint64_t got[2];
      key_out.download(got);
      const Key want = resolve(call.forward(false).key);
      Worst worst;
      const bool same = got[0] == want.seed && (faults.noise || got[1] == want.offset);
      worst.compare(same ? 0 : 1, 0, {0.5, 0}, 0);
      verdict.add("key", worst);
    }
  } else {
    cpu::backward(call.backward(false), serial_for);
    check(cuda::backward(call.backward(true), nullptr), "cuda::backward");
    check(cudaDeviceSynchronize(), "backward");
  }
  call.outputs([&](const char* name, const Worst& worst) { verdict.add(name, worst); });
  return verdict;
}

// A list of tensors, some of them shorter than a vector, one of them misaligned.
template <typename S>
class ListCall {
 public:
  using O = math::arithmetic_t<S>;

  explicit ListCall(const Faults& faults) : faults_(faults) {
    for (const int64_t n : {int64_t{5001}, int64_t{1}, int64_t{4096}, int64_t{37}}) {
      const Layout layout = n == 37 ? Layout::kShifted : Layout::kContiguous;
      const Shape shape{{n}, {true}, layout};
      const auto tensor = [&](uint64_t seed) {
        return std::make_unique<Twin<S, O>>(shape, layout, seed);
      };
      items_.push_back({n, tensor(1), tensor(2), tensor(0), tensor(4), tensor(0), tensor(0)});
    }
  }

  MultiParams params(bool on_device, Direction direction) {
    const bool forward = direction == Direction::kForward;
    MultiParams p;
    p.dtype = on_device ? TypeOf<S>::kDType : TypeOf<O>::kDType;
    p.key.seed = 42;
    p.key.offset = 3 + (on_device && faults_.noise ? 1 : 0);
    p.options.prior_mean = 0.25;
    uint64_t block = 0;
    for (const ListItem& item : items_) {
      Item& to = p.item[p.items++];
      to.mu = item.mu->data(on_device);
      to.raw = item.raw->data(on_device);
      if (forward) {
        to.z = item.z->data(on_device);
      } else {
        to.grad_z = item.grad_z->data(on_device);
        to.grad_mu = item.grad_mu->data(on_device);
        to.grad_raw = item.grad_raw->data(on_device);
      }
      to.n = item.n;
      to.first_tile = p.tiles;
      to.first_block = block;
      to.weight = 0.5 + static_cast<double>(p.items);
      p.tiles += tiles_of(item.n);
      block += static_cast<uint64_t>(item.n + 3) / (sizeof(O) == 8 ? 2 : 4) + 1;
    }
    if (forward) {
      p.kl = kl_.data(on_device);
      p.partials = static_cast<double*>(partials_.data(on_device));
    } else {
      p.grad_kl = grad_kl_.data(on_device);
    }
    return p;
  }

  Verdict verdict(Direction direction) const {
    Verdict verdict;
    const bool forward = direction == Direction::kForward;
    if (forward) verdict.add("kl", kl_.compare(kKlTolerance<S>));
    for (const ListItem& item : items_) {
      if (forward) verdict.add("z", item.z->compare(kTolerance<S>));
      if (!forward) verdict.add("grad_mu", item.grad_mu->compare(kTolerance<S>));
      if (!forward) verdict.add("grad_raw", item.grad_raw->compare(kTolerance<S>));
    }
    return verdict;
  }

 private:
  using Tensor = std::unique_ptr<Twin<S, O>>;
  struct ListItem {
    int64_t n;
    Tensor mu, raw, z, grad_z, grad_mu, grad_raw;
  };

  Faults faults_;
  std::vector<ListItem> items_;
  Twin<O, O> kl_{{{1}, {true}}, Layout::kContiguous, 0};
  Twin<O, O> grad_kl_{{{1}, {true}}, Layout::kContiguous, 9};
  Twin<double, double> partials_{{{64}, {true}}, Layout::kContiguous, 0};
};

template <typename S>
Verdict check_list(Direction direction, const Faults& faults) {
  ListCall<S> call(faults);
  const MultiParams on_host = call.params(false, direction), p = call.params(true, direction);
  if (direction == Direction::kForward) {
    cpu::forward_multi(on_host, serial_for);
    check(cuda::forward_multi(p, nullptr), "cuda::forward_multi");
  } else {
    cpu::backward_multi(on_host, serial_for);
    check(cuda::backward_multi(p, nullptr), "cuda::backward_multi");
  }
  check(cudaDeviceSynchronize(), "list");
  return call.verdict(direction);
}

constexpr Direction kDirections[] = {Direction::kForward, Direction::kBackward};

const char* name_of(Direction direction) {
  return direction == Direction::kForward ? "forward" : "backward";
}

Row row_of(const std::string& what, const std::string& access, Direction direction,
           const char* dtype) {
  Row row("correctness");
  row.add("case", what).add("access", access).add("direction", name_of(direction));
  return row.add("dtype", dtype);
}

template <typename S>
void check_case(const Settings& settings, Report& report, const Case& c) {
  for (const Direction d : kDirections) {
    const char* const dtype = TypeOf<S>::kName;
    const std::string name = std::string(name_of(d)) + " " + dtype + " " + c.access + ": " + c.name;
    guarded(settings, report, row_of(c.name, c.access, d, dtype), name,
            [&] { return check_call<S>(c, d, settings.faults); });
  }
}

template <typename S>
void check_lists(const Settings& settings, Report& report) {
  for (const Direction d : kDirections) {
    const char* const dtype = TypeOf<S>::kName;
    guarded(settings, report, row_of("list", "list", d, dtype),
            std::string(name_of(d)) + " " + dtype + " list",
            [&] { return check_list<S>(d, settings.faults); });
  }
}

Verdict verdict_of(const Agreement& agreement) {
  Verdict verdict;
  verdict.add("results", agreement.worst);
  verdict.add("kl", agreement.kl);
  return verdict;
}

// Checks the variants of one direction and dtype. The scene is made for the first that is wanted.
void check_variants(const Settings& settings, Report& report, const SceneSpec& spec) {
  std::unique_ptr<Scene> scene;
  for (const Variant& variant : variants()) {
    if (variant.direction != spec.direction || variant.dtype != spec.dtype) continue;
    for (const Grid grid : {Grid::kMerged, Grid::kPersistent}) {
      const std::string what = variant.name() + ", " + probe::name_of(grid);
      const Row row = row_of(what, "variant", spec.direction, probe::name_of(spec.dtype));
      guarded(settings, report, row, "variant " + spec.name() + ": " + what, [&] {
        if (!scene) {
          scene = std::make_unique<Scene>(spec, settings.device, settings.sizes(),
                                          settings.faults.variant);
        }
        return verdict_of(scene->agreement([&](int set, cudaStream_t stream) {
          return scene->launch_variant(variant, grid, Ticket::kAcquireRelease, set, stream);
        }));
      });
    }
  }
}

// Compares all variants with the shipped kernel. The tensors have so many tiles that a block of a
// persistent grid has several.
void check_all_variants(const Settings& settings, Report& report) {
  for (const Direction d : kDirections) {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
      check_variants(settings, report, {d, dtype, View::kContiguous, settings.tiny ? 14 : 23});
    }
  }
}

// Checks that a roof reads and writes all of its tensors.
Verdict check_roof(const Roof& roof, int sms) {
  constexpr int64_t kBytes = 1 << 16;
  constexpr size_t kInputs = 3, kTensors = 5;
  std::vector<std::unique_ptr<Memory>> memory;
  std::vector<std::vector<uint32_t>> words(kTensors, std::vector<uint32_t>(kBytes / 4));
  Streams of;
  for (size_t k = 0; k < kTensors; ++k) {
    memory.push_back(std::make_unique<Memory>(kBytes));
    for (size_t i = 0; i < words[k].size(); ++i) {
      words[k][i] = static_cast<uint32_t>((i + 1) * (k + 7) * 0x9E3779B1u);
    }
    memory[k]->upload(words[k].data());
    char* const data = static_cast<char*>(memory[k]->data());
    if (k < kInputs) {
      of.in[k] = data;
    } else {
      of.out[k - kInputs] = data;
    }
  }
  check(roof.launch(of, kBytes, sms, nullptr), "roof");
  Worst worst;
  for (int k = 0; k < roof.writes; ++k) {
    const Memory& written = *memory[kInputs + k];
    std::vector<uint32_t> got(kBytes / 4);
    written.download(got.data());
    for (size_t i = 0; i < got.size(); ++i) {
      uint32_t all = words[0][i];
      for (int r = 1; r < roof.reads; ++r) all ^= words[r][i];
      const bool same = got[i] == roof_word(all, k);
      worst.compare(same ? 0 : 1, 0, {0.5, 0}, static_cast<int64_t>(i));
    }
    if (!written.intact()) worst = {1e30, 1e30, -2};
  }
  Verdict verdict;
  verdict.add("words", worst);
  return verdict;
}

void check_roofs(const Settings& settings, Report& report) {
  for (const int reads : {1, 2, 3}) {
    for (const Roof& roof : roofs(reads)) {
      guarded(settings, report, Row("correctness").add("case", roof.name()).add("access", "roof"),
              roof.name(), [&] { return check_roof(roof, settings.device.sms); });
    }
  }
}

void check_patches(const Settings& settings, Report& report) {
  for (const PatchVariant& variant : patch_variants()) {
    for (const View view : {View::kChannelsLast4, View::kChannelsLast64}) {
      if (variant.four_channels && view != View::kChannelsLast4) continue;
      const SceneSpec spec{variant.direction, variant.dtype, view, settings.tiny ? 14 : 23};
      const Row row = row_of(variant.name() + ", " + probe::name_of(view), "variant",
                             variant.direction, probe::name_of(variant.dtype));
      guarded(settings, report, row, "variant " + spec.name() + ": " + variant.name(), [&] {
        const Scene scene(spec, settings.device, settings.sizes(), settings.faults.variant);
        return verdict_of(scene.agreement([&](int set, cudaStream_t stream) {
          return scene.launch_patches(variant, set, stream);
        }));
      });
    }
  }
}

}  // namespace

void run_correctness(const Settings& settings, Report& report) {
  for (const Case& c : correctness_cases(settings.tiny)) {
    check_case<float>(settings, report, c);
    check_case<math::BFloat16>(settings, report, c);
    check_case<math::Half>(settings, report, c);
    check_case<double>(settings, report, c);
  }
  check_lists<float>(settings, report);
  check_lists<math::BFloat16>(settings, report);
  check_lists<math::Half>(settings, report);
  check_lists<double>(settings, report);
  check_all_variants(settings, report);
  check_patches(settings, report);
  check_roofs(settings, report);
}

}  // namespace vae_fused::probe
