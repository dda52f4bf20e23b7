// The lanes that csrc/math computes on, a block of noise in each: what it does with one number it
// does with these.
//
//   Floats   kLanes floats
//   Bits     kLanes 32-bit integers
//   Wide     kLanes 32-bit integers, each in the low half of 64 bits; the high half is anything
//
// Floats and Bits are two vectors of the machine, Wide is four: each operation stands for several
// that do not wait for each other, which is what keeps the machine busy. Everything is in the
// vector extension of GCC and clang but for two instructions, the product 32 x 32 -> 64 and the
// square root; these are the only intrinsics.
//
// A file that includes this is compiled for one target. It includes the intrinsics before it says
// for which: see noise_avx2.cpp.
#pragma once

#include <cstdint>

#include "math/platform.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__clang__)
#pragma clang fp contract(fast)  // a product and a sum are two operators here, and GCC fuses them
#define VAE_FUSED_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define VAE_FUSED_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, i32{__VA_ARGS__})
#endif

namespace vae_fused::cpu::VAE_FUSED_TARGET {

constexpr int kBytes = VAE_FUSED_VECTOR_BYTES;
constexpr int kWidth = kBytes / 4;  // of one vector
constexpr int kLanes = 2 * kWidth;

typedef float f32 __attribute__((vector_size(kBytes)));
typedef int32_t i32 __attribute__((vector_size(kBytes)));
typedef uint32_t u32 __attribute__((vector_size(kBytes)));
typedef uint64_t u64 __attribute__((vector_size(kBytes)));

// The low halves' products, and the root.
#if VAE_FUSED_VECTOR_BYTES == 64
VAE_FUSED_HD u64 product(u64 x, u64 y) {
  return (u64)_mm512_maskz_mul_epu32(0xFF, (__m512i)x, (__m512i)y);
}
VAE_FUSED_HD f32 root(f32 x) { return (f32)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)x); }
#elif VAE_FUSED_VECTOR_BYTES == 32
VAE_FUSED_HD u64 product(u64 x, u64 y) { return (u64)_mm256_mul_epu32((__m256i)x, (__m256i)y); }
VAE_FUSED_HD f32 root(f32 x) { return (f32)_mm256_sqrt_ps((__m256)x); }
#elif defined(__x86_64__)
VAE_FUSED_HD u64 product(u64 x, u64 y) { return (u64)_mm_mul_epu32((__m128i)x, (__m128i)y); }
VAE_FUSED_HD f32 root(f32 x) { return (f32)_mm_sqrt_ps((__m128)x); }
#elif defined(__aarch64__)
VAE_FUSED_HD u64 product(u64 x, u64 y) {
  return (u64)vmull_u32(vmovn_u64((uint64x2_t)x), vmovn_u64((uint64x2_t)y));
}
VAE_FUSED_HD f32 root(f32 x) { return (f32)vsqrtq_f32((float32x4_t)x); }
#else
VAE_FUSED_HD u64 product(u64 x, u64 y) { return (x & 0xFFFFFFFFu) * (y & 0xFFFFFFFFu); }
VAE_FUSED_HD f32 root(f32 x) {
  for (int i = 0; i < kWidth; ++i) x[i] = math::sqrt_libm(x[i]);
  return x;
}
#endif

struct Floats {
  f32 a, b;
  Floats() = default;
  VAE_FUSED_HD Floats(f32 a, f32 b) : a(a), b(b) {}
  VAE_FUSED_HD Floats(float x) : a(x - f32{}), b(a) {}
  friend VAE_FUSED_HD Floats operator+(Floats x, Floats y) { return {x.a + y.a, x.b + y.b}; }
  friend VAE_FUSED_HD Floats operator-(Floats x, Floats y) { return {x.a - y.a, x.b - y.b}; }
  friend VAE_FUSED_HD Floats operator*(Floats x, Floats y) { return {x.a * y.a, x.b * y.b}; }
  friend VAE_FUSED_HD Floats sqrt(Floats x) { return {root(x.a), root(x.b)}; }
};

struct Bits {
  u32 a, b;
  Bits() = default;
  VAE_FUSED_HD Bits(u32 a, u32 b) : a(a), b(b) {}
  VAE_FUSED_HD Bits(uint32_t x) : a(x - u32{}), b(a) {}
  friend VAE_FUSED_HD Bits operator+(Bits x, Bits y) { return {x.a + y.a, x.b + y.b}; }
  friend VAE_FUSED_HD Bits operator-(Bits x, Bits y) { return {x.a - y.a, x.b - y.b}; }
  friend VAE_FUSED_HD Bits operator&(Bits x, Bits y) { return {x.a & y.a, x.b & y.b}; }
  friend VAE_FUSED_HD Bits operator^(Bits x, Bits y) { return {x.a ^ y.a, x.b ^ y.b}; }
  friend VAE_FUSED_HD Bits operator<<(Bits x, int n) { return {x.a << n, x.b << n}; }
  friend VAE_FUSED_HD Bits operator>>(Bits x, int n) { return {x.a >> n, x.b >> n}; }
};

VAE_FUSED_HD Bits bits(Floats x) { return {(u32)x.a, (u32)x.b}; }
VAE_FUSED_HD Floats real(Bits x) { return {(f32)x.a, (f32)x.b}; }
VAE_FUSED_HD Floats to_float(Bits x) {
  return {__builtin_convertvector(x.a, f32), __builtin_convertvector(x.b, f32)};
}
VAE_FUSED_HD Floats shifted_to_float(Bits x, int n) {
  return {__builtin_convertvector((i32)x.a >> n, f32), __builtin_convertvector((i32)x.b >> n, f32)};
}

struct Wide {
  u64 a, b, c, d;
  Wide() = default;
  VAE_FUSED_HD Wide(u64 a, u64 b, u64 c, u64 d) : a(a), b(b), c(c), d(d) {}
  VAE_FUSED_HD Wide(uint32_t x) : a(uint64_t{x} - u64{}), b(a), c(a), d(a) {}
  friend VAE_FUSED_HD Wide operator^(Wide x, Wide y) {
    return {x.a ^ y.a, x.b ^ y.b, x.c ^ y.c, x.d ^ y.d};
  }
  friend VAE_FUSED_HD Wide operator*(Wide x, Wide y) {
    return {product(x.a, y.a), product(x.b, y.b), product(x.c, y.c), product(x.d, y.d)};
  }
  friend VAE_FUSED_HD Wide high_halves(Wide x) {
    return {x.a >> 32, x.b >> 32, x.c >> 32, x.d >> 32};
  }
  friend VAE_FUSED_HD Wide mulhi(Wide x, Wide y) { return high_halves(x * y); }
};

// Within each 16 bytes, where shuffles are cheap: elements i and j of x, then k and l of y.
template <int i, int j, int k, int l>
VAE_FUSED_HD f32 shuffle(f32 x, f32 y) {
  constexpr int w = kWidth;
#if VAE_FUSED_VECTOR_BYTES == 64
  return VAE_FUSED_SHUFFLE(x, y, i, j, w + k, w + l, 4 + i, 4 + j, w + 4 + k, w + 4 + l, 8 + i,
                           8 + j, w + 8 + k, w + 8 + l, 12 + i, 12 + j, w + 12 + k, w + 12 + l);
#elif VAE_FUSED_VECTOR_BYTES == 32
  return VAE_FUSED_SHUFFLE(x, y, i, j, w + k, w + l, 4 + i, 4 + j, w + 4 + k, w + 4 + l);
#else
  return VAE_FUSED_SHUFFLE(x, y, i, j, w + k, w + l);
#endif
}

// The low halves, in the order that a shuffle within 16 bytes gives: lanes 0 and 1 of a, 0 and 1 of
// b, 2 and 3 of a, ...
VAE_FUSED_HD u32 low_halves(u64 x, u64 y) { return (u32)shuffle<0, 2, 0, 2>((f32)x, (f32)y); }
VAE_FUSED_HD Bits low_halves(Wide x) { return {low_halves(x.a, x.b), low_halves(x.c, x.d)}; }

// Where lane i of Wide, counted through a, b, c, d, then is.
VAE_FUSED_HD int lane_of_low_half(int i) {
  constexpr int kHalf = kWidth / 2;
  return i / kWidth * kWidth + i % kHalf / 2 * 4 + i % kWidth / kHalf * 2 + i % 2;
}

// Memory of any alignment.
typedef float f32_in_memory __attribute__((vector_size(kBytes), aligned(4), may_alias));
typedef uint32_t u32_in_memory __attribute__((vector_size(kBytes), aligned(4), may_alias));
typedef uint64_t u64_in_memory __attribute__((vector_size(kBytes), aligned(8), may_alias));

VAE_FUSED_HD void store(f32 x, float* to) { *reinterpret_cast<f32_in_memory*>(to) = x; }
VAE_FUSED_HD void store(u32 x, uint32_t* to) { *reinterpret_cast<u32_in_memory*>(to) = x; }
VAE_FUSED_HD u32 load(const uint32_t* from) {
  return *reinterpret_cast<const u32_in_memory*>(from);
}
VAE_FUSED_HD u64 load(const uint64_t* from) {
  return *reinterpret_cast<const u64_in_memory*>(from);
}

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
