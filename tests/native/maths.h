// The functions of csrc/math on arrays. bind.cpp calls them and is compiled without optimisation.
#pragma once

#include <cstdint>

namespace maths {

#define EACH(T)                                                             \
  void exp(const T* x, T* out, int64_t n);                                  \
  void log(const T* x, T* out, int64_t n);                                  \
  /* [n, 5]: e^(x/2), and e^x - 1 - x and e^x - 1 from it and from e^x */   \
  void exponentials(const T* x, T* out, int64_t n);                         \
  void log_any(const T* x, T* out, int64_t n);                              \
  void log1p_unit(const T* x, T* out, int64_t n);                           \
  void tanh(const T* x, T* out, int64_t n); /* [n, 2]: value, derivative */ \
  /* [n, 4]: sigma, ln sigma^2, and their derivatives */                    \
  void scale_base(int base, const T* x, T* out, int64_t n);                 \
  void log1p(const T* x, T* out, int64_t n);                                \
  void log1p_excess(const T* x, T* out, int64_t n); /* of y = x / 1 */      \
  void stirling(const T* x, T* out, int64_t n);     /* [n, 2]: S, S' */     \
  void normals(uint64_t seed, uint64_t offset, uint64_t first, T* out, int64_t n);
EACH(float)
EACH(double)
#undef EACH

void polar(const float* x, float* out, int64_t n);                          // [n, 2]: sine, cosine
void philox(uint64_t seed, uint64_t first, uint32_t* out, int64_t blocks);  // [blocks, 4]

}  // namespace maths
