#include "maths.h"

#include "math/latent/gaussian.h"
#include "math/normal.h"
#include "math/special.h"

namespace maths {

namespace math = vae_fused::math;

#define EACH(T)                                                                                 \
  void exp(const T* x, T* out, int64_t n) {                                                     \
    for (int64_t i = 0; i < n; ++i) out[i] = math::exp(x[i]);                                   \
  }                                                                                             \
  void log(const T* x, T* out, int64_t n) {                                                     \
    for (int64_t i = 0; i < n; ++i) out[i] = math::log(x[i]);                                   \
  }                                                                                             \
  void exponentials(const T* x, T* out, int64_t n) {                                            \
    for (int64_t i = 0; i < n; ++i) {                                                           \
      const auto with = math::exponentials(x[i]);                                               \
      const auto both = with.excess(x[i]);                                                      \
      const auto from = math::excess(math::clip_for_exp(x[i]), math::exp(x[i]));                \
      const T results[] = {with.sigma, both.g, both.h, from.g, from.h};                         \
      for (int j = 0; j < 5; ++j) out[5 * i + j] = results[j];                                  \
    }                                                                                           \
  }                                                                                             \
  void log_any(const T* x, T* out, int64_t n) {                                                 \
    for (int64_t i = 0; i < n; ++i) out[i] = math::log_any(x[i]);                               \
  }                                                                                             \
  void log1p_unit(const T* x, T* out, int64_t n) {                                              \
    for (int64_t i = 0; i < n; ++i) out[i] = math::log1p_unit(x[i]);                            \
  }                                                                                             \
  void tanh(const T* x, T* out, int64_t n) {                                                    \
    for (int64_t i = 0; i < n; ++i) {                                                           \
      const auto t = math::tanh(x[i]);                                                          \
      out[2 * i] = t.value;                                                                     \
      out[2 * i + 1] = t.derivative;                                                            \
    }                                                                                           \
  }                                                                                             \
  void scale_base(int base, const T* x, T* out, int64_t n) {                                    \
    math::ScaleOptions<T> o;                                                                    \
    o.gain = 1;                                                                                 \
    for (int64_t i = 0; i < n; ++i) {                                                           \
      const auto s = math::scale_of(o, static_cast<math::ScaleBase>(base), false,               \
                                    math::Clamped<T>{x[i], T(1)});                              \
      const T results[] = {s.sigma, s.x, s.dsigma, s.dx};                                       \
      for (int j = 0; j < 4; ++j) out[4 * i + j] = results[j];                                  \
    }                                                                                           \
  }                                                                                             \
  void log1p(const T* x, T* out, int64_t n) {                                                   \
    for (int64_t i = 0; i < n; ++i) out[i] = math::log1p(x[i]);                                 \
  }                                                                                             \
  void log1p_excess(const T* x, T* out, int64_t n) {                                            \
    for (int64_t i = 0; i < n; ++i) out[i] = math::log1p_excess(x[i], T(1), x[i] / (1 + x[i])); \
  }                                                                                             \
  void stirling(const T* x, T* out, int64_t n) {                                                \
    for (int64_t i = 0; i < n; ++i) {                                                           \
      out[2 * i] = math::stirling_error(x[i]);                                                  \
      out[2 * i + 1] = math::stirling_error_slope(x[i]);                                        \
    }                                                                                           \
  }                                                                                             \
  void normals(uint64_t seed, uint64_t offset, uint64_t first, T* out, int64_t n) {             \
    for (int64_t i = 0; i < n; ++i)                                                             \
      out[i] = math::normal_at<T>(math::Seed(seed), offset, first + i);                         \
  }
EACH(float)
EACH(double)
#undef EACH

void polar(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) math::polar(1.0f, x[i], out[2 * i + 1], out[2 * i]);
}

void philox(uint64_t seed, uint64_t first, uint32_t* out, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b) {
    const auto words = math::philox(math::Seed(seed), first + static_cast<uint64_t>(b));
    for (int j = 0; j < 4; ++j) out[4 * b + j] = words.w[j];
  }
}

}  // namespace maths
