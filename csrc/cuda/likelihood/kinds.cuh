// The kinds of likelihoods for which kernels are instantiated.
#pragma once

#include "cuda/select.cuh"
#include "math/likelihood/kinds.h"
#include "params/likelihood.h"

namespace vae_fused::cuda {

// The options of a kernel. A kernel that selects the kind at run time (AnyKind) reads it from here.
template <typename T>
struct KernelOptions : math::LikelihoodOptions<T> {
  LikelihoodKind kind;
};

template <typename T>
KernelOptions<T> kernel_options(const Observations& observations) {
  return {math::narrowed<T>(observations.options), observations.kind};
}

// Calls visit(L{}), where L is the type that implements the kind.
template <typename Visit>
cudaError_t launch_with_kind(LikelihoodKind kind, const Visit& visit) {
  VAE_FUSED_RETURN_WITH_KIND(kind, visit)
}

template <typename Visit>
__device__ __forceinline__ auto with_kind(LikelihoodKind kind, const Visit& visit) {
  VAE_FUSED_RETURN_WITH_KIND(kind, visit)
}

// Implements every kind with a run-time switch, in which the threads do not diverge. It has three
// outputs, the maximum of any kind, followed by the target. Kernels for double use it, because
// double is the reference path, and separate kernels for each kind took 1.1 MB of machine code.
struct AnyKind {
  static constexpr int kInputs = 4;
  static constexpr bool kIsCount = true;

  // The inputs of kind L, which may have fewer inputs than AnyKind.
  template <class L, typename F>
  struct InputsOf {
    F in[L::kInputs];

    explicit __device__ __forceinline__ InputsOf(const F (&all)[kInputs]) {
      VAE_FUSED_UNROLL
      for (int k = 0; k + 1 < L::kInputs; ++k) in[k] = all[k];
      in[L::kInputs - 1] = all[kInputs - 1];
    }
    __device__ __forceinline__ void copy_to(F (&all)[kInputs]) const {
      VAE_FUSED_UNROLL
      for (int k = 0; k + 1 < L::kInputs; ++k) all[k] = in[k];
      all[kInputs - 1] = in[L::kInputs - 1];
    }
  };

  template <typename Options, typename F>
  static __device__ __forceinline__ F value(const Options& o, const F (&in)[kInputs]) {
    return with_kind(o.kind, [&](auto kind) {
      using L = decltype(kind);
      return L::value(o, InputsOf<L, F>(in).in);
    });
  }

  template <typename Options, typename F>
  static __device__ __forceinline__ F count_term(const Options& o, const F (&in)[kInputs]) {
    return with_kind(o.kind, [&](auto kind) {
      using L = decltype(kind);
      if constexpr (L::kIsCount) {
        return L::count_term(o, InputsOf<L, F>(in).in);
      } else {
        return F(0);
      }
    });
  }

  template <typename Options, typename F>
  static __device__ __forceinline__ void adjoint(const Options& o, const F (&in)[kInputs], F grad,
                                                 F (&out)[kInputs]) {
    VAE_FUSED_UNROLL
    for (int k = 0; k < kInputs; ++k) out[k] = 0;
    with_kind(o.kind, [&](auto kind) {
      using L = decltype(kind);
      InputsOf<L, F> x(in), dx(out);
      L::adjoint(o, x.in, grad, dx.in);
      dx.copy_to(out);
    });
  }

  template <typename Options, typename F>
  static __device__ __forceinline__ void count_term_adjoint(const Options& o,
                                                            const F (&in)[kInputs], F grad,
                                                            F (&out)[kInputs]) {
    with_kind(o.kind, [&](auto kind) {
      using L = decltype(kind);
      if constexpr (L::kIsCount) {
        InputsOf<L, F> x(in), dx(out);
        L::count_term_adjoint(o, x.in, grad, dx.in);
        dx.copy_to(out);
      }
    });
  }
};

// The kind with which the kernel for kind L is instantiated.
template <typename S, class L>
using KernelKind = std::conditional_t<std::is_same_v<S, double>, AnyKind, L>;

// The index of the target among the inputs of a likelihood.
template <class L>
constexpr int kTarget = L::kInputs - 1;

// Whether a nonzero count adds to the gradient of a parameter. The parameter is theta, which is
// input 1.
template <class L>
constexpr bool kCountHasGradient = L::kIsCount && L::kInputs > 2;

}  // namespace vae_fused::cuda
