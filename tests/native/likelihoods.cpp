// See likelihoods.h. VARIANT is the name of the variant. VARIANT_BYTES is the size of its vectors,
// if it has vectors. AVAILABLE is true if the machine can run the variant.
#include "likelihoods.h"

#include "math/likelihood/kinds.h"

#if defined(VARIANT_BYTES)
#define VAE_FUSED_TARGET VARIANT
#define VAE_FUSED_VECTOR_BYTES VARIANT_BYTES
#include "cpu/vector.h"
#endif
#if !defined(AVAILABLE)
#define AVAILABLE true
#endif

namespace likelihoods {
namespace {

namespace math = vae_fused::math;
using math::select;

#if defined(VARIANT_BYTES)
using vae_fused::cpu::VARIANT::load;
using vae_fused::cpu::VARIANT::store;
#else
template <typename F>
F load(const F* from) {
  return *from;
}
template <typename F>
void store(F x, F* to) {
  *to = x;
}
#endif

template <typename Kind, typename F, typename T>
void elements(const math::LikelihoodOptions<T>& o, const T* in, T* out) {
  constexpr int kWidth = sizeof(F) / sizeof(T);
  F inputs[Kind::kInputs], grads[Kind::kInputs];
  for (int k = 0; k < Kind::kInputs; ++k) inputs[k] = load(in + k * kWidth);
  F value = Kind::value(o, inputs);
  Kind::adjoint(o, inputs, F(1), grads);
  if constexpr (Kind::kIsCount) {
    const auto zero = inputs[Kind::kInputs - 1] == F(0);
    F with_count[Kind::kInputs];
    for (int k = 0; k < Kind::kInputs; ++k) with_count[k] = grads[k];
    Kind::count_term_adjoint(o, inputs, F(1), with_count);
    value = select(zero, value, value + Kind::count_term(o, inputs));
    for (int k = 0; k < Kind::kInputs; ++k) grads[k] = select(zero, grads[k], with_count[k]);
  }
  store(value, out);
  for (int k = 0; k < Kind::kInputs; ++k) store(grads[k], out + (k + 1) * kWidth);
}

template <typename Kind, typename F, typename T>
void array(const Options& options, const T* in, T* out, int64_t n) {
  constexpr int kWidth = sizeof(F) / sizeof(T), kInputs = Kind::kInputs;
  const auto o = math::narrowed<T>(options);
  for (int64_t i = 0; i < n; i += kWidth) {
    T ins[kInputs * kWidth], outs[(kInputs + 1) * kWidth];
    for (int j = 0; j < kWidth; ++j) {
      const int64_t at = i + j < n ? i + j : n - 1;
      for (int k = 0; k < kInputs; ++k) ins[k * kWidth + j] = in[k * n + at];
    }
    elements<Kind, F>(o, ins, outs);
    for (int j = 0; j < kWidth && i + j < n; ++j) {
      for (int k = 0; k <= kInputs; ++k) out[k * n + i + j] = outs[k * kWidth + j];
    }
  }
}

template <typename F, typename T>
void evaluate(Kind kind, const Options& options, const T* in, T* out, int64_t n) {
  const auto visit = [&](auto formulas) { array<decltype(formulas), F>(options, in, out, n); };
  VAE_FUSED_RETURN_WITH_KIND(kind, visit)
}

}  // namespace

#define NAME_OF(name) #name
#define NAME(name) NAME_OF(name)
#if defined(VARIANT_BYTES)
const Variant VARIANT = {NAME(VARIANT), AVAILABLE, &evaluate<vae_fused::cpu::VARIANT::Float, float>,
                         nullptr};
#else
const Variant VARIANT = {NAME(VARIANT), AVAILABLE, &evaluate<float, float>,
                         &evaluate<double, double>};
#endif

}  // namespace likelihoods
