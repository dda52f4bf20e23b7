// The KL term of an evidence lower bound: see KlTerm in params/likelihood.h. It has one value per
// sample, so one thread block computes it at the end of the launch that computes the likelihood.
// Its loops are not unrolled, because unrolled loops in every kernel of the family took 0.6 MB of
// machine code on sm_120.
#pragma once

#include "cuda/likelihood/reduce.cuh"
#include "math/likelihood/kl_term.h"
#include "params/likelihood.h"

namespace vae_fused::cuda {

template <typename T>
class KlTermOf {
 public:
  __device__ __forceinline__ explicit KlTermOf(const KlTerm& term)
      : term_(term),
        beta_(term.beta ? at(term.beta, 0) : term.beta_value),
        capacity_(term.capacity ? at(term.capacity, 0) : term.capacity_value) {}

  // Writes the results. Any block of the launch may have written the reconstructions in `nll`.
  __device__ __forceinline__ void add_to(const void* nll) const {
    const T* const reconstruction = static_cast<const T*>(nll);
    if (term_.results > 1) {
#pragma unroll 1
      for (int64_t r = threadIdx.x; r < term_.results; r += kThreads) {
        const double k = at(term_.samples, r * term_.stride);
        write(r, reconstruction, k, penalty_of(k));
      }
      return;
    }
    double kl = 0, penalty = 0;
#pragma unroll 1
    for (int64_t s = threadIdx.x; s < term_.count; s += kThreads) {
      const double k = at(term_.samples, s * term_.stride);
      kl += k;
      penalty += penalty_of(k);
    }
    kl = sum_of_block(kl);
    penalty = sum_of_block(penalty);
    if (threadIdx.x == 0) write(0, reconstruction, kl, penalty);
  }

  __device__ __forceinline__ void write_gradients() const {
    double grad_beta = 0;
#pragma unroll 1
    for (int64_t s = threadIdx.x; s < term_.count; s += kThreads) {
      const int64_t r = term_.results == 1 ? 0 : s;
      const double k = at(term_.samples, s * term_.stride);
      const double grad_loss = term_.grad_loss ? term_.factor * at(term_.grad_loss, r) : 0;
      const double grad_kl = term_.grad_kl ? term_.factor * at(term_.grad_kl, r) : 0;
      const double slope = math::kl_penalty_slope(term_.has_capacity, capacity_, k);
      if (term_.grad_samples) put(term_.grad_samples, s, beta_ * slope * grad_loss + grad_kl);
      grad_beta += penalty_of(k) * grad_loss;
    }
    if (!term_.grad_beta) return;
    grad_beta = sum_of_block(grad_beta);
    if (threadIdx.x == 0) put(term_.grad_beta, 0, grad_beta);
  }

 private:
  __device__ __forceinline__ void write(int64_t r, const T* reconstruction, double kl,
                                        double penalty) const {
    const double nll = static_cast<double>(__ldcg(reconstruction + r));
    put(term_.kl, r, term_.factor * kl);
    put(term_.loss, r, nll + beta_ * (term_.factor * penalty));
  }
  __device__ __forceinline__ double penalty_of(double k) const {
    return math::kl_penalty(term_.has_capacity, capacity_, k);
  }
  static __device__ __forceinline__ double at(const void* values, int64_t i) {
    return static_cast<double>(static_cast<const T*>(values)[i]);
  }
  static __device__ __forceinline__ void put(void* values, int64_t i, double x) {
    static_cast<T*>(values)[i] = static_cast<T>(x);
  }

  const KlTerm& term_;
  double beta_, capacity_;
};

// The last block of a launch calls this after it has combined its sums.
template <typename T>
__device__ __forceinline__ void add_kl(const KlTerm& term, const void* nll) {
  if (!term.samples) return;
  __syncthreads();
  KlTermOf<T>(term).add_to(nll);
}

// One block of a launch calls this.
template <typename T>
__device__ __forceinline__ void write_kl_gradients(const KlTerm& term) {
  if (term.has_gradients()) KlTermOf<T>(term).write_gradients();
}

}  // namespace vae_fused::cuda
