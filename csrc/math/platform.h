// Defines everything that differs between the host and the device compiler. In csrc/math only this
// file tests the compiler with #ifdef.
//
//   VAE_FUSED_HD       marks a formula: it compiles for host and device and is always inlined, so
//                      that a CPU loop over a tile vectorises; tests of the kernels' accesses
//                      define VAE_FUSED_CALL_FORMULAS, because calls compile in half the time
//   VAE_FUSED_NOINLINE_DEVICE   marks a function that is rarely called; GPU kernels keep it out of
//                      line
//   VAE_FUSED_UNROLL   unrolls the next loop, which must have a constant length; compilers do not
//                      vectorise a loop that contains another loop
//   mulhi              upper half of the double-width product
//   bits, real         reinterpretation between float and uint32_t
//   smaller, larger    the smaller and the larger of two floats
//   rounded_product    a product that is not fused with a sum
//   cvt_...            conversions of 16-bit types, where the machine has an instruction for them
//   ..._libm           functions of the platform's library, or faster ones on a GPU
//   ..._approx         hardware approximations of float functions, where they exist
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define VAE_FUSED_HD __host__ __device__ __forceinline__
#define VAE_FUSED_NOINLINE_DEVICE __host__ __device__ __noinline__ inline
#elif defined(VAE_FUSED_CALL_FORMULAS)
#define VAE_FUSED_HD inline
#elif defined(__GNUC__)
#define VAE_FUSED_HD inline __attribute__((always_inline))
#else
#define VAE_FUSED_HD inline
#endif
#if !defined(VAE_FUSED_NOINLINE_DEVICE)
#define VAE_FUSED_NOINLINE_DEVICE VAE_FUSED_HD
#endif

// A source file whose double-precision kernels contain many calls to the C library defines
// VAE_FUSED_LIBM_OUT_OF_LINE. Each kernel then contains one copy of each function instead of many.
#if defined(VAE_FUSED_LIBM_OUT_OF_LINE)
#define VAE_FUSED_LIBM VAE_FUSED_NOINLINE_DEVICE
#else
#define VAE_FUSED_LIBM VAE_FUSED_HD
#endif

#if defined(__CUDA_ARCH__)
#define VAE_FUSED_UNROLL _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__CUDACC__)  // nvcc's host pass supports neither pragma
#define VAE_FUSED_UNROLL _Pragma("GCC unroll 16")
#else
#define VAE_FUSED_UNROLL
#endif

namespace vae_fused::math {

VAE_FUSED_HD uint32_t mulhi(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
#endif
}

VAE_FUSED_HD uint64_t mulhi(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

VAE_FUSED_HD uint32_t bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
#endif
}

VAE_FUSED_HD float real(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
#endif
}

// Returns the product x y in a form that no compiler fuses into a multiply-add. Otherwise the other
// uses of the product would determine whether it is fused, and results would not be bit-identical
// across kernels.
VAE_FUSED_HD float rounded_product(float x, float y) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(x, y);
#elif defined(__CUDACC__)  // nvcc's host pass does not evaluate this
  return x * y;
#elif __has_builtin(__builtin_assoc_barrier)
  return __builtin_assoc_barrier(x * y);
#else
  return x * y;
#endif
}

VAE_FUSED_HD float to_float(uint32_t u) { return static_cast<float>(u); }

// Reads the bits as a signed integer, shifts it right by n, and converts it to a float.
VAE_FUSED_HD float shifted_to_float(uint32_t u, int n) {
  return static_cast<float>(static_cast<int32_t>(u) >> n);
}

#if defined(__CUDA_ARCH__)
#define VAE_FUSED_HAS_CVT_F16
VAE_FUSED_HD float cvt_f32_f16(uint16_t h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
}
VAE_FUSED_HD uint16_t cvt_f16_f32(float x) {
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
}
#if __CUDA_ARCH__ >= 800
#define VAE_FUSED_HAS_CVT_BF16
VAE_FUSED_HD uint16_t cvt_bf16_f32(float x) {
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
}
#endif
#endif

// x < y ? x : y and x > y ? x : y. x must not be NaN. If y is NaN, the result is NaN. If x and y
// are both variables, nvcc compiles these expressions to a comparison and a selection, so the code
// uses inline PTX instead.
VAE_FUSED_HD float smaller(float x, float y) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
#else
  return x < y ? x : y;
#endif
}
VAE_FUSED_HD float larger(float x, float y) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
#else
  return x > y ? x : y;
#endif
}

// Double precision is the reference path, not the hot one, so it calls the platform's library.
VAE_FUSED_LIBM double exp_libm(double x) { return ::exp(x); }
VAE_FUSED_LIBM double log_libm(double x) { return ::log(x); }
VAE_FUSED_HD double sqrt_libm(double x) { return ::sqrt(x); }
VAE_FUSED_LIBM double expm1_libm(double x) { return ::expm1(x); }
VAE_FUSED_LIBM double log1p_libm(double x) { return ::log1p(x); }
VAE_FUSED_LIBM double tanh_libm(double x) { return ::tanh(x); }

// The square root of a float that is 0 or normal, within an ulp. CUDA's own sqrtf calls a function
// to handle other arguments. Here a Newton step squares the error of the approximate reciprocal
// square root, which is 2^-22.9. The lower bound of 1e-37 avoids 0 * inf for an argument of 0.
VAE_FUSED_HD float sqrt_libm(float x) {
#if defined(__CUDA_ARCH__)
  x = fmaxf(x, 1e-37f);
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  const float root = x * y;
  return fmaf(fmaf(-root, root, x), 0.5f * y, root);
#else
  return ::sqrtf(x);
#endif
}

// The next two functions accept any argument, as division and sqrtf do in C. On a GPU they are
// accurate to 2 ulp and inlined, whereas CUDA's own versions are function calls.
VAE_FUSED_HD float reciprocal_libm(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

VAE_FUSED_HD float sqrt_any_libm(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::sqrtf(x);
#endif
}

// The hardware approximations, for results that are rounded to 16 bits. Each takes one instruction,
// except sine and cosine, which take two. The documented errors (PTX ISA, floating point
// instructions) are:
//
//   ex2   2^-22 relative           lg2   2^-22 absolute in [1/2, 2], otherwise relative
//   sqrt  2^-23 relative           sin, cos   2^-20.5 absolute in [-2 pi, 2 pi]
//
// The emulated device introduces errors of this size: relative ones towards 0, absolute ones
// downwards.
#if defined(__CUDA_ARCH__)
constexpr bool kHasApproximations = true;
#define VAE_FUSED_APPROXIMATION(name)                        \
  VAE_FUSED_HD float name##_approx(float x) {                \
    float y;                                                 \
    asm(#name ".approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                                \
  }
VAE_FUSED_APPROXIMATION(ex2)
VAE_FUSED_APPROXIMATION(lg2)
VAE_FUSED_APPROXIMATION(sqrt)
VAE_FUSED_APPROXIMATION(sin)
VAE_FUSED_APPROXIMATION(cos)
#undef VAE_FUSED_APPROXIMATION
#else
#if defined(VAE_FUSED_EMULATOR)
constexpr bool kHasApproximations = true;
#else
constexpr bool kHasApproximations = false;
#endif
inline float with_relative_error(float y, float error) { return y * (1.0f - error); }
inline float with_absolute_error(float y, float error) { return std::floor(y / error) * error; }

inline float ex2_approx(float x) { return with_relative_error(std::exp2(x), 0x1p-22f); }
inline float lg2_approx(float x) {
  const float y = std::log2(x);
  return x >= 0.5f && x <= 2.0f ? with_absolute_error(y, 0x1p-22f)
                                : with_relative_error(y, 0x1p-22f);
}
inline float sqrt_approx(float x) { return with_relative_error(std::sqrt(x), 0x1p-23f); }
inline float sin_approx(float x) { return with_absolute_error(std::sin(x), 6.743496e-7f); }
inline float cos_approx(float x) { return with_absolute_error(std::cos(x), 6.743496e-7f); }
#endif

// sin and cos of 2 pi u. CUDA's sincos has a slow path with a stack frame for arguments that never
// occur here. CUDA's sincospi has no slow path, and it also avoids rounding the angle.
VAE_FUSED_HD void sincos_turns_libm(double u, double& s, double& c) {
#if defined(__CUDA_ARCH__)
  ::sincospi(2.0 * u, &s, &c);
#else
  s = ::sin(6.283185307179586 * u);
  c = ::cos(6.283185307179586 * u);
#endif
}

}  // namespace vae_fused::math
