// The KL term of an evidence lower bound, which is computed after the tiles.
#pragma once

#include "math/likelihood/kl_term.h"
#include "params/likelihood.h"

namespace vae_fused::cpu {

template <typename T>
class KlTermOf {
 public:
  explicit KlTermOf(const KlTerm& term)
      : term_(term),
        beta_(term.beta ? at(term.beta, 0) : term.beta_value),
        capacity_(term.capacity ? at(term.capacity, 0) : term.capacity_value) {}

  // Computes the results from `nll`, the reconstruction terms.
  void add_to(const void* nll) const {
    for_each_result([&](int64_t r, int64_t begin, int64_t end) {
      double kl = 0, penalty = 0;
      for (int64_t s = begin; s < end; ++s) {
        kl += sample(s);
        penalty += penalty_of(sample(s));
      }
      const double reconstruction = static_cast<double>(static_cast<const T*>(nll)[r]);
      put(term_.kl, r, term_.factor * kl);
      put(term_.loss, r, reconstruction + beta_ * (term_.factor * penalty));
    });
  }

  void write_gradients() const {
    double grad_beta = 0;
    for_each_result([&](int64_t r, int64_t begin, int64_t end) {
      const double grad_loss = term_.factor * at(term_.grad_loss, r);
      const double grad_kl = term_.factor * at(term_.grad_kl, r);
      for (int64_t s = begin; s < end; ++s) {
        const double k = sample(s);
        const double slope = math::kl_penalty_slope(term_.has_capacity, capacity_, k);
        put(term_.grad_samples, s, beta_ * slope * grad_loss + grad_kl);
        grad_beta += penalty_of(k) * grad_loss;
      }
    });
    put(term_.grad_beta, 0, grad_beta);
  }

 private:
  template <typename Visit>
  void for_each_result(const Visit& visit) const {
    const int64_t samples = term_.results == 1 ? term_.count : 1;
    for (int64_t r = 0; r < term_.results; ++r) visit(r, r * samples, (r + 1) * samples);
  }

  double penalty_of(double k) const { return math::kl_penalty(term_.has_capacity, capacity_, k); }
  double sample(int64_t s) const {
    return static_cast<double>(static_cast<const T*>(term_.samples)[s * term_.stride]);
  }
  static double at(const void* values, int64_t i) {
    return values ? static_cast<double>(static_cast<const T*>(values)[i]) : 0.0;
  }
  static void put(void* values, int64_t i, double x) {
    if (values) static_cast<T*>(values)[i] = static_cast<T>(x);
  }

  const KlTerm& term_;
  double beta_, capacity_;
};

template <typename Visit>
void with_arithmetic(DType dtype, const Visit& visit) {
  dtype == DType::kFloat64 ? visit(double{}) : visit(float{});
}

inline void add_kl(DType dtype, const KlTerm& term, const void* nll) {
  if (!term.samples) return;
  with_arithmetic(dtype, [&](auto t) { KlTermOf<decltype(t)>(term).add_to(nll); });
}

inline void write_kl_gradients(DType dtype, const KlTerm& term) {
  if (!term.has_gradients()) return;
  with_arithmetic(dtype, [&](auto t) { KlTermOf<decltype(t)>(term).write_gradients(); });
}

}  // namespace vae_fused::cpu
