// Tensors that exist twice with the same strides and values: on the device in the dtype of a call,
// and on the host in the type in which the oracle computes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "device.h"
#include "iteration/make_space.h"
#include "math/storage.h"

namespace vae_fused::probe {

template <typename S>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr DType kDType = DType::kFloat32;
  static constexpr const char* kName = "float32";
};
template <>
struct TypeOf<double> {
  static constexpr DType kDType = DType::kFloat64;
  static constexpr const char* kName = "float64";
};
template <>
struct TypeOf<math::Half> {
  static constexpr DType kDType = DType::kFloat16;
  static constexpr const char* kName = "float16";
};
template <>
struct TypeOf<math::BFloat16> {
  static constexpr DType kDType = DType::kBFloat16;
  static constexpr const char* kName = "bfloat16";
};
template <>
struct TypeOf<uint8_t> {
  static constexpr const char* kName = "bytes";
};

template <typename S>
S narrowed(double x) {
  S out;
  if constexpr (std::is_same_v<S, double> || std::is_same_v<S, uint8_t>) {
    out = static_cast<S>(x);
  } else {
    math::narrow(static_cast<float>(x), out);
  }
  return out;
}

template <typename S>
double widened(S x) {
  if constexpr (std::is_same_v<S, uint8_t>) {
    return x;
  } else {
    return static_cast<double>(math::widen(x));
  }
}

// The tolerance of a device's value: `absolute + relative * |oracle|`. The relative
// part of 16-bit types is their rounding to nearest, the absolute one covers approximations of the
// hardware, which are within 1e-5 of a normal before sigma multiplies them.
struct Tolerance {
  double absolute, relative;
};

template <typename S>
constexpr Tolerance kTolerance =
    std::is_same_v<S, double>           ? Tolerance{1e-12, 1e-12}
    : std::is_same_v<S, float>          ? Tolerance{8e-6, 8e-6}
    : std::is_same_v<S, math::BFloat16> ? Tolerance{1e-4, 1.01 / (1 << 8)}
                                        : Tolerance{1e-4, 1.01 / (1 << 11)};

// For the KL of a row. Its terms are not negative, so the relative error does not grow with the
// row.
template <typename S>
constexpr Tolerance kKlTolerance = std::is_same_v<S, double>  ? Tolerance{1e-12, 1e-12}
                                   : std::is_same_v<S, float> ? Tolerance{4e-6, 4e-6}
                                                              : Tolerance{2e-5, 2e-5};

// The worst of many comparisons: the difference, its share of the tolerance, and the element.
struct Worst {
  double error = 0, share = 0;
  int64_t at = -1;

  void compare(double value, double expected, const Tolerance& tolerance, int64_t i) {
    double error = std::abs(value - expected);
    if (value == expected) error = 0;  // infinities, too
    const double allowed = tolerance.absolute + tolerance.relative * std::abs(expected);
    const double share = std::isnan(error) ? 1e30 : error / allowed;
    if (share <= this->share && at >= 0) return;
    *this = {std::isnan(error) ? 1e30 : error, share, i};
  }
  bool good() const { return share <= 1; }
};

enum class Layout {
  kContiguous,
  kChunked,       // the second half of a tensor of twice the size, along dimension 1
  kChannelsLast,  // dimension 1 is innermost in memory
  kShifted,       // begins one element after an aligned address
};

struct Shape {
  std::vector<int64_t> sizes;
  std::vector<bool> summed;
  Layout layout = Layout::kContiguous;

  int64_t elements() const {
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    return n;
  }
  DimSet dims() const {
    DimSet set;
    for (size_t d = 0; d < summed.size(); ++d) set[d] = summed[d];
    return set;
  }
};

// The place of a tensor of a shape in its storage, in elements.
struct Placement {
  std::vector<int64_t> strides;
  int64_t begin = 0, size = 0;

  explicit Placement(const Shape& shape, Layout layout) : strides(shape.sizes.size(), 1) {
    const size_t ndim = shape.sizes.size();
    int64_t step = 1;
    const auto place = [&](size_t d) {
      strides[d] = step;
      step *= shape.sizes[d];
    };
    const bool last = layout == Layout::kChannelsLast;
    if (last) place(1);
    for (size_t d = ndim; d-- > (last ? 2 : 0);) place(d);
    if (last) place(0);
    size = step;
    if (layout == Layout::kShifted) size += begin = 1;
    if (layout == Layout::kChunked) {
      begin = strides[0];
      strides[0] *= 2;
      size = shape.sizes[0] * strides[0];
    }
  }
};

constexpr double kUnwritten = 77;  // exact in every dtype, and never a result

// S on the device, O on the host.
template <typename S, typename O>
class Twin {
 public:
  // Holds `samples` consecutive tensors. Their values are in [-2, 2) and depend on `seed`.
  // A tensor with the seed 0 is an output.
  Twin(const Shape& shape, Layout layout, uint64_t seed, int64_t samples = 1)
      : place_(shape, layout),
        host_(static_cast<size_t>(place_.size * samples)),
        memory_(host_.size() * sizeof(S)) {
    std::vector<S> stored(host_.size());
    for (size_t i = 0; i < stored.size(); ++i) {
      const uint64_t word = (i + seed * 1000003) * 0x9E3779B97F4A7C15u;
      double value = static_cast<double>(word >> 40) / (1 << 22) - 2;
      if (std::is_same_v<S, uint8_t>) value = i % 5 != 2;
      stored[i] = narrowed<S>(seed ? value : kUnwritten);
      host_[i] = narrowed<O>(widened(stored[i]));
    }
    memory_.upload(stored.data());
  }

  void* data(bool on_device) {
    if (!on_device) return host_.data() + place_.begin;
    return static_cast<S*>(memory_.data()) + place_.begin;
  }
  BoundTensor binding(bool on_device, Operand& operand) {
    return {data(on_device), place_.strides.data(), &operand};
  }
  int64_t step() const { return place_.size; }  // distance of two samples

  // Compares the whole storage, in which elements outside of the tensor must be unwritten,
  // and checks the guards around it.
  Worst compare(const Tolerance& tolerance) const {
    std::vector<S> stored(host_.size());
    memory_.download(stored.data());
    Worst worst;
    for (size_t i = 0; i < stored.size(); ++i) {
      worst.compare(widened(stored[i]), widened(host_[i]), tolerance, static_cast<int64_t>(i));
    }
    if (!memory_.intact()) worst = {1e30, 1e30, -2};
    return worst;
  }

 private:
  Placement place_;
  std::vector<O> host_;
  Memory memory_;
};

}  // namespace vae_fused::probe
