// See nll_cases.h. The results of different calls are compared with each other, for example sums
// with their elements. tests/native/test_nll.py compares them with the formulas.
#include "nll_cases.h"

#include <cmath>
#include <iterator>
#include <map>
#include <memory>
#include <vector>

#include "params/likelihood.h"
#include "space.h"

namespace {

using namespace vae_fused;
using testing::Array;

template <typename T>
using Block = std::unique_ptr<T[]>;

struct Shape {
  std::vector<int64_t> sizes;
  std::vector<bool> summed;
  int64_t shift = 0;  // elements by which the arrays are misaligned

  int64_t count() const {
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    return n;
  }
};

const Shape kShapes[] = {
    {{1}, {true}},
    {{7, 12}, {false, false}, 1},
    {{400, 3}, {false, true}},
    {{9, 132}, {false, true}},
    {{3, 2052}, {false, true}},
    {{5, 1025}, {true, true}},
    {{2, 5, 33}, {true, false, true}},
};

// An array with a shape, some of whose dimensions may be broadcast.
template <typename T>
class Tensor {
 public:
  explicit Tensor(const Shape& shape, std::vector<bool> broadcast = {}) {
    size_ = 1;
    array.strides.assign(shape.sizes.size(), 0);
    for (size_t d = shape.sizes.size(); d-- > 0;) {
      if (!broadcast.empty() && broadcast[d]) continue;
      array.strides[d] = size_;
      size_ *= shape.sizes[d];
    }
    data_.reset(new T[static_cast<size_t>(size_ + shape.shift)]());
    values = data_.get() + shape.shift;
    array.data = values;
  }

  // Fills the tensor with values between `low` and `high` from a multiplicative sequence.
  Tensor& fill(double low, double high, uint64_t seed) {
    for (int64_t i = 0; i < size_; ++i) {
      const uint64_t word = (static_cast<uint64_t>(i) + seed * 1000003) * 0x9E3779B97F4A7C15u;
      values[i] = static_cast<T>(low + (high - low) * static_cast<double>(word >> 40) / (1 << 24));
    }
    return *this;
  }

  double sum() const {
    double total = 0;
    for (int64_t i = 0; i < size_; ++i) total += static_cast<double>(values[i]);
    return total;
  }
  double magnitude() const {
    double total = 1;
    for (int64_t i = 0; i < size_; ++i) total += std::abs(static_cast<double>(values[i]));
    return total;
  }
  int64_t size() const { return size_; }

  Array array;
  T* values;

 private:
  Block<T> data_;
  int64_t size_;
};

using Arrays = std::map<std::string, Array>;

class Call {
 public:
  Call(const Shape& shape, LikelihoodKind kind, std::vector<bool> broadcast)
      : shape_(shape),
        kind_(kind),
        broadcast_(broadcast),
        output_(shape),
        second_(shape, broadcast),
        third_(shape),
        target_(shape),
        mask_(shape),
        rows_{Tensor<float>(shape, by_row()), Tensor<float>(shape, by_row())},
        dot_(shape, by_row()) {
    output_.fill(0.1, 2, 1);
    second_.fill(0.1, 2, 2);
    third_.fill(-1, 1, 3);
    target_.fill(0, 9, 4);
    mask_.fill(0, 8, 5);
    for (int64_t i = 0; i < shape.count(); ++i) {
      target_.values[i] = target_.values[i] < 6 ? 0 : target_.values[i] - 5;
      mask_.values[i] = mask_.values[i] > 0;
    }
  }

  void run(const std::function<void(bool, const std::string&)>& expect, const std::string& name) {
    const bool is_softmax = kind_ == LikelihoodKind::kNegativeBinomial;
    if (is_softmax) expect(softmax() == 0, name + ": softmax");
    Tensor<float> elements(shape_);
    const std::vector<bool> nothing(shape_.sizes.size(), false);
    expect(forward(nothing, elements.values) == 0, name + ": elements");
    std::vector<float> sums(static_cast<size_t>(shape_.count()));
    expect(forward(shape_.summed, sums.data()) == 0, name + ": forward");
    double total = 0;
    for (const float sum : sums) total += sum;
    expect(std::abs(total - elements.sum()) < 1e-5 * elements.magnitude(), name + ": sums");

    if (is_softmax) expect(dots() == 0, name + ": dots");
    Tensor<float> full(shape_);
    expect(backward(full.array, "grad_second") == 0, name + ": backward");
    Tensor<double> summed(shape_, broadcast_);
    const bool sums_second = summed.size() < shape_.count();
    if (!sums_second) return;
    expect(backward(summed.array, "sum_second") == 0, name + ": sums of backward");
    expect(std::abs(summed.sum() - full.sum()) < 1e-5 * full.magnitude(), name + ": shared");
  }

 private:
  std::vector<bool> by_row() const {
    std::vector<bool> last(shape_.sizes.size(), false);
    last.back() = true;
    return last;
  }

  void describe(Observations& observations) const {
    observations.kind = kind_;
    observations.options.has_raw = true;
    observations.options.mean = kind_ == LikelihoodKind::kNegativeBinomial
                                    ? math::FrontEnd::kSoftmax
                                    : math::FrontEnd::kIdentity;
  }

  Arrays inputs() const {
    Arrays arrays = {{"output", output_.array}, {"target", target_.array}, {"mask", mask_.array}};
    arrays["second"] = second_.array;
    if (kind_ == LikelihoodKind::kZeroInflatedNegativeBinomial) arrays["third"] = third_.array;
    if (kind_ == LikelihoodKind::kNegativeBinomial) {
      arrays["row_max"] = rows_[0].array;
      arrays["row_shift"] = rows_[1].array;
    }
    return arrays;
  }

  int softmax() {
    SoftmaxParams p;
    testing::bind(p, shape_.sizes, by_row(), {{"logits", output_.array}, {"mask", mask_.array}});
    Block<double> partials(new double[2 * p.space.tiles]);
    p.row_max = rows_[0].values;
    p.row_shift = rows_[1].values;
    if (p.space.tiles_per_row > 1) p.partials = partials.get();
    return cuda::softmax_rows(p, nullptr);
  }

  int forward(const std::vector<bool>& summed, float* result) const {
    NllParams p;
    describe(p.observations);
    testing::bind(p, shape_.sizes, summed, inputs());
    Block<double> partials(new double[p.space.tiles]);
    Block<float> exact(new float[p.space.rows]);
    p.nll.data = exact.get();
    if (p.space.tiles_per_row > 1) p.nll.partials = partials.get();
    const int error = cuda::nll(p, nullptr);
    for (int64_t r = 0; r < p.space.rows; ++r) result[r] = exact[r];
    return error;
  }

  NllBackwardParams backward_params(Tensor<float>& grad, const std::vector<bool>& summed,
                                    const Arrays& more) const {
    NllBackwardParams p;
    describe(p.observations);
    Arrays arrays = inputs();
    arrays["grad"] = grad.fill(0.5, 1, 9).array;
    arrays.insert(more.begin(), more.end());
    testing::bind(p, shape_.sizes, summed, arrays);
    return p;
  }

  int dots() {
    Tensor<float> grad(shape_);
    NllBackwardParams p = backward_params(grad, by_row(), {});
    Block<double> partials(new double[p.space.tiles]);
    p.dot.data = dot_.values;
    if (p.space.tiles_per_row > 1) p.dot.partials = partials.get();
    return cuda::softmax_dot(p, nullptr);
  }

  int backward(const Array& second, const std::string& name) const {
    Tensor<float> grad(shape_), output(shape_), third(shape_), target(shape_);
    Arrays more = {{"grad_output", output.array}, {"grad_target", target.array}};
    more[name] = second;
    if (kind_ == LikelihoodKind::kZeroInflatedNegativeBinomial) more["grad_third"] = third.array;
    if (kind_ == LikelihoodKind::kNegativeBinomial) more["row_dot"] = dot_.array;
    NllBackwardParams p =
        backward_params(grad, std::vector<bool>(shape_.sizes.size(), false), more);
    Block<double> partials(new double[cuda::partials_of(p)]);
    p.partials = partials.get();
    const int error = cuda::nll_backward(p, nullptr);
    return error ? error : with_values(p);
  }

  // Computes the gradients in the same pass as the loss, which includes a KL of three samples.
  static int with_values(NllBackwardParams p) {
    constexpr int kSamples = 3;
    Block<double> values(new double[cuda::value_partials_of(p)]);
    Block<float> results(new float[3]), samples(new float[kSamples]());
    p.grad = {};
    p.nll = {&results[0], 1.0, values.get()};
    p.kl.samples = samples.get();
    p.kl.count = kSamples;
    p.kl.loss = &results[1];
    p.kl.kl = &results[2];
    return cuda::nll_backward(p, nullptr);
  }

  const Shape& shape_;
  LikelihoodKind kind_;
  std::vector<bool> broadcast_;
  Tensor<float> output_, second_, third_, target_;
  Tensor<uint8_t> mask_;
  Tensor<float> rows_[2], dot_;
};

}  // namespace

void run_nll(const std::function<void(bool, const std::string&)>& expect) {
  // A kind without counts, one with a softmax, and the one with the most inputs.
  constexpr LikelihoodKind kKinds[] = {LikelihoodKind::kGaussian, LikelihoodKind::kNegativeBinomial,
                                       LikelihoodKind::kZeroInflatedNegativeBinomial};
  for (const Shape& shape : kShapes) {
    const size_t ndim = shape.sizes.size();
    std::vector<bool> columns(ndim, true), lines(ndim, false);
    columns.back() = false;
    lines.back() = true;
    const std::vector<bool> broadcasts[] = {std::vector<bool>(ndim, false), columns, lines};
    for (size_t i = 0; i < std::size(broadcasts) * std::size(kKinds); ++i) {
      const LikelihoodKind kind = kKinds[i % std::size(kKinds)];
      std::string name = "kind " + std::to_string(static_cast<int>(kind)) + " of";
      for (const int64_t size : shape.sizes) name += " " + std::to_string(size);
      Call(shape, kind, broadcasts[i / std::size(kKinds)]).run(expect, name);
    }
  }
}
