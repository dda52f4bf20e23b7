// The tensors of a timed call and everything that can be launched on them. There are enough sets of
// tensors that no part of a set is in the L2 cache when it is used again. Set 0 is only used for
// checks, because the timed copy overwrites a part of the inputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "patches.h"
#include "roofs.h"
#include "tensors.h"
#include "variants.h"

namespace vae_fused::probe {

enum class View : int {
  kContiguous,
  kRows256,            // rows of 256 columns, with a KL each
  kChunked,            // images of 4 channels, chunked along the channels
  kChannelsLast4,      // images of 4 channels in channels_last
  kChannelsLast64,     // of 64
  kChannelsLastChunk,  // of 4, in channels_last, chunked along the channels
};

inline const char* name_of(View view) {
  constexpr const char* kNames[] = {"contiguous",      "rows of 256",      "chunked",
                                    "channels_last 4", "channels_last 64", "channels_last chunk"};
  return kNames[static_cast<int>(view)];
}

struct SceneSpec {
  Direction direction;
  DType dtype;
  View view;
  int log2_elements;

  bool forward() const { return direction == Direction::kForward; }
  int64_t elements() const { return int64_t{1} << log2_elements; }
  int64_t element_bytes() const {
    return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  }
  int reads() const { return forward() ? 2 : 3; }
  int writes() const { return forward() ? 1 : 2; }
  int64_t rows() const { return view == View::kRows256 ? elements() / 256 : 1; }
  // The least bytes that the call moves. The KL and its gradient are float.
  int64_t bytes() const { return elements() * element_bytes() * (reads() + writes()) + rows() * 4; }
  int64_t channels() const { return view == View::kChannelsLast64 ? 64 : 4; }
  // The pixels of an image. Small tensors have small images.
  int64_t pixels() const { return log2_elements >= 20 ? 128 * 128 : 64; }
  std::string name() const;
};

inline const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"float32", "float64", "float16", "bfloat16"};
  return kNames[static_cast<int>(dtype)];
}

inline std::string SceneSpec::name() const {
  return std::string(forward() ? "forward " : "backward ") + name_of(dtype) + " 2^" +
         std::to_string(log2_elements) + " " + name_of(view);
}

// The difference between the results of a launch and those of the shipped kernel.
struct Agreement {
  bool identical = false;  // every bit of z, or of the gradients
  Worst worst;             // of these
  Worst kl;
  bool good() const { return worst.good() && kl.good(); }
};

class Scene {
 public:
  Scene(const SceneSpec& spec, const Device& device, const Sizes& sizes, bool wrong_key);

  const SceneSpec& spec() const { return spec_; }
  int timed_sets() const { return static_cast<int>(sets_.size()) - 1; }  // 1 and the following

  int launch_shipped(int set, cudaStream_t stream) const;
  int launch_variant(const Variant& variant, Grid grid, Ticket ticket, int set,
                     cudaStream_t stream) const;
  int launch_patches(const PatchVariant& variant, int set, cudaStream_t stream) const;
  int launch_roof(const Roof& roof, int set, cudaStream_t stream) const;
  // Copies half as many bytes as the call moves, so that both move equally many.
  int launch_copy(int set, cudaStream_t stream) const;
  // Keeps the device busy while the host queues its launches.
  int launch_spacer(cudaStream_t stream) const;

  // Compares results of the shipped kernel at a few hundred places with the formulas in double. The
  // normals are those of the float stream.
  Worst spot_check() const;
  // Runs `launch` on set 0 and compares its outputs with those of the shipped kernel.
  template <typename Launch>
  Agreement agreement(const Launch& launch) const {
    clear();
    check(launch(0, nullptr), "launch");
    return compare();
  }

 private:
  // Offsets and strides of the inputs and outputs, for sizes of the view.
  struct Strides {
    std::vector<int64_t> sizes, in, out;
    std::vector<bool> summed;
    int64_t raw = 0;  // from mu to raw in a shared tensor; 0: separate tensors
  };
  // One block of memory: the inputs, followed by the outputs.
  struct Set {
    std::unique_ptr<Memory> memory;
    Streams of;
    ForwardParams forward;
    BackwardParams backward;
  };

  static Strides strides_of(const SceneSpec& spec);
  Set make_set() const;
  void bind(Set& set) const;
  void fill_first() const;
  VariantCall call(int set, Grid grid, Ticket ticket) const;
  double read(const char* data, int64_t at) const;
  void clear() const;
  Agreement compare() const;

  SceneSpec spec_;
  Strides strides_;
  Sizes sizes_;
  bool wrong_key_;
  std::vector<Set> sets_;
  std::vector<std::unique_ptr<Memory>> expected_;
  std::vector<float> expected_kl_;
  Memory kl_, grad_kl_, partials_, counter_, spacer_;
};

}  // namespace vae_fused::probe
