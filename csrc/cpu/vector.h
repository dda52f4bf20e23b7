// SIMD types with the interface of the scalars, so that the formulas of csrc/math compile for both.
//
//   Float        a vector of the machine, of kWidth floats
//   Word         a vector of 32-bit integers
//   Mask         a truth value for each lane
//   Pair<V>      two Float or two Word, with a block of noise in each of kLanes lanes
//   Wide         kLanes 32-bit integers in the low halves of 64 bits; the high halves are arbitrary
//
// An operation on a Pair consists of two independent instructions, and one on a Wide of four. These
// instructions keep the machine busy despite the long dependency chains of Philox and Box-Muller.
// The code uses the vector extensions of GCC and clang. Intrinsics are used only for operations
// that the extensions lack: the 32 x 32 -> 64 product, the square root, the minimum and maximum,
// and masks.
//
// A file that includes this header is compiled for one target. That file must include the
// intrinsics header before it selects the target, as noise_avx2.cpp does.
#pragma once

#include <cstdint>

#include "math/platform.h"
#include "math/storage.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__clang__)
#pragma clang fp contract(fast)  // fuses products and sums of these operators, as GCC does
#define VAE_FUSED_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define VAE_FUSED_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, i32{__VA_ARGS__})
#endif

#if defined(__aarch64__)
#define VAE_FUSED_VECTOR_REGISTER "w"
#elif VAE_FUSED_VECTOR_BYTES == 64
#define VAE_FUSED_VECTOR_REGISTER "v"
#elif defined(__x86_64__)
#define VAE_FUSED_VECTOR_REGISTER "x"
#else
#define VAE_FUSED_VECTOR_REGISTER "m"
#endif

namespace vae_fused::cpu::VAE_FUSED_TARGET {

constexpr int kBytes = VAE_FUSED_VECTOR_BYTES;
constexpr int kWidth = kBytes / 4;  // lanes of one vector
constexpr int kLanes = 2 * kWidth;

typedef float f32 __attribute__((vector_size(kBytes)));
typedef int32_t i32 __attribute__((vector_size(kBytes)));
typedef uint32_t u32 __attribute__((vector_size(kBytes)));
typedef uint64_t u64 __attribute__((vector_size(kBytes)));

// `product` multiplies the low halves. `lesser` returns x < y ? x : y, and `greater` returns x > y
// ? x : y. If x or y is NaN, both return y, or NaN on Arm. A mask has one bit per lane if the
// machine supports that. Otherwise each lane is all ones or all zeros.
#if VAE_FUSED_VECTOR_BYTES == 64
typedef __mmask16 mask_t;
VAE_FUSED_HD u64 product(u64 x, u64 y) {
  return (u64)_mm512_maskz_mul_epu32(0xFF, (__m512i)x, (__m512i)y);
}
VAE_FUSED_HD f32 root(f32 x) { return (f32)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)x); }
VAE_FUSED_HD f32 lesser(f32 x, f32 y) {
  return (f32)_mm512_maskz_min_ps(0xFFFF, (__m512)x, (__m512)y);
}
VAE_FUSED_HD f32 greater(f32 x, f32 y) {
  return (f32)_mm512_maskz_max_ps(0xFFFF, (__m512)x, (__m512)y);
}
VAE_FUSED_HD mask_t where_less(f32 x, f32 y) {
  return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_LT_OQ);
}
VAE_FUSED_HD mask_t where_equal(f32 x, f32 y) {
  return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_EQ_OQ);
}
VAE_FUSED_HD f32 blend(mask_t m, f32 x, f32 y) {
  return (f32)_mm512_mask_blend_ps(m, (__m512)y, (__m512)x);
}
VAE_FUSED_HD bool everywhere(mask_t m) { return m == 0xFFFF; }
// For each lane l where m is true, stores first + l, without gaps. Returns the number of such
// lanes. The function always writes a whole vector.
constexpr bool kHasCompress = true;
VAE_FUSED_HD int compress(mask_t m, int first, int32_t* to) {
  const i32 lanes = i32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + first;
  const i32 found = (i32)_mm512_maskz_compress_epi32(m, (__m512i)lanes);
  __builtin_memcpy(to, &found, sizeof(found));
  return __builtin_popcount(m);
}
#else
typedef i32 mask_t;
constexpr bool kHasCompress = false;
inline int compress(mask_t, int, int32_t*);  // not implemented
VAE_FUSED_HD mask_t where_less(f32 x, f32 y) { return x < y; }
VAE_FUSED_HD mask_t where_equal(f32 x, f32 y) { return x == y; }
VAE_FUSED_HD f32 blend(mask_t m, f32 x, f32 y) { return m ? x : y; }
#if VAE_FUSED_VECTOR_BYTES == 32
VAE_FUSED_HD u64 product(u64 x, u64 y) { return (u64)_mm256_mul_epu32((__m256i)x, (__m256i)y); }
VAE_FUSED_HD f32 root(f32 x) { return (f32)_mm256_sqrt_ps((__m256)x); }
VAE_FUSED_HD f32 lesser(f32 x, f32 y) { return (f32)_mm256_min_ps((__m256)x, (__m256)y); }
VAE_FUSED_HD f32 greater(f32 x, f32 y) { return (f32)_mm256_max_ps((__m256)x, (__m256)y); }
VAE_FUSED_HD bool everywhere(mask_t m) { return _mm256_movemask_ps((__m256)m) == 0xFF; }
#elif defined(__x86_64__)
VAE_FUSED_HD u64 product(u64 x, u64 y) { return (u64)_mm_mul_epu32((__m128i)x, (__m128i)y); }
VAE_FUSED_HD f32 root(f32 x) { return (f32)_mm_sqrt_ps((__m128)x); }
VAE_FUSED_HD f32 lesser(f32 x, f32 y) { return (f32)_mm_min_ps((__m128)x, (__m128)y); }
VAE_FUSED_HD f32 greater(f32 x, f32 y) { return (f32)_mm_max_ps((__m128)x, (__m128)y); }
VAE_FUSED_HD bool everywhere(mask_t m) { return _mm_movemask_ps((__m128)m) == 0xF; }
#elif defined(__aarch64__)
VAE_FUSED_HD u64 product(u64 x, u64 y) {
  return (u64)vmull_u32(vmovn_u64((uint64x2_t)x), vmovn_u64((uint64x2_t)y));
}
VAE_FUSED_HD f32 root(f32 x) { return (f32)vsqrtq_f32((float32x4_t)x); }
VAE_FUSED_HD f32 lesser(f32 x, f32 y) { return (f32)vminq_f32((float32x4_t)x, (float32x4_t)y); }
VAE_FUSED_HD f32 greater(f32 x, f32 y) { return (f32)vmaxq_f32((float32x4_t)x, (float32x4_t)y); }
VAE_FUSED_HD bool everywhere(mask_t m) { return vminvq_u32((uint32x4_t)m) != 0; }
#else
VAE_FUSED_HD u64 product(u64 x, u64 y) { return (x & 0xFFFFFFFFu) * (y & 0xFFFFFFFFu); }
VAE_FUSED_HD f32 root(f32 x) {
  for (int i = 0; i < kWidth; ++i) x[i] = math::sqrt_libm(x[i]);
  return x;
}
VAE_FUSED_HD f32 lesser(f32 x, f32 y) { return x < y ? x : y; }
VAE_FUSED_HD f32 greater(f32 x, f32 y) { return x > y ? x : y; }
VAE_FUSED_HD bool everywhere(mask_t m) {
  bool all = true;
  for (int i = 0; i < kWidth; ++i) all &= m[i] != 0;
  return all;
}
#endif
#endif

struct Mask {
  mask_t m;
  friend VAE_FUSED_HD Mask operator&(Mask x, Mask y) { return {static_cast<mask_t>(x.m & y.m)}; }
  friend VAE_FUSED_HD Mask operator|(Mask x, Mask y) { return {static_cast<mask_t>(x.m | y.m)}; }
  friend VAE_FUSED_HD Mask operator~(Mask x) { return {static_cast<mask_t>(~x.m)}; }
  friend VAE_FUSED_HD bool all(Mask x) { return everywhere(x.m); }
};

struct Float {
  using Number = float;
  f32 v;
  Float() = default;
  VAE_FUSED_HD Float(f32 v) : v(v) {}
  VAE_FUSED_HD Float(float x) : v(x - f32{}) {}
  friend VAE_FUSED_HD Float operator+(Float x, Float y) { return x.v + y.v; }
  friend VAE_FUSED_HD Float operator-(Float x, Float y) { return x.v - y.v; }
  friend VAE_FUSED_HD Float operator*(Float x, Float y) { return x.v * y.v; }
  friend VAE_FUSED_HD Float operator-(Float x) { return -x.v; }
  friend VAE_FUSED_HD Mask operator<(Float x, Float y) { return {where_less(x.v, y.v)}; }
  friend VAE_FUSED_HD Mask operator>(Float x, Float y) { return {where_less(y.v, x.v)}; }
  friend VAE_FUSED_HD Mask operator==(Float x, Float y) { return {where_equal(x.v, y.v)}; }
  friend VAE_FUSED_HD Float select(Mask m, Float x, Float y) { return blend(m.m, x.v, y.v); }
  friend VAE_FUSED_HD Float smaller(Float x, Float y) { return lesser(x.v, y.v); }
  friend VAE_FUSED_HD Float larger(Float x, Float y) { return greater(x.v, y.v); }
  friend VAE_FUSED_HD Float rounded_product(Float x, Float y) {
    f32 z = x.v * y.v;
    asm("" : "+" VAE_FUSED_VECTOR_REGISTER(z));
    return z;
  }
  friend VAE_FUSED_HD Float abs(Float x) { return (f32)((u32)x.v & 0x7FFFFFFFu); }
  friend VAE_FUSED_HD Float minus_abs(Float x) { return (f32)((u32)x.v | 0x80000000u); }
  friend VAE_FUSED_HD Float sqrt(Float x) { return root(x.v); }
  friend VAE_FUSED_HD Float sqrt_any(Float x) { return root(x.v); }
  friend VAE_FUSED_HD Float sqrt_normal(Float x) { return root(x.v); }
  friend VAE_FUSED_HD Float reciprocal(Float x) { return 1.0f / x.v; }
  friend VAE_FUSED_HD Float quotient(Float x, Float y) { return x.v / y.v; }
};

struct Word {
  using Number = uint32_t;
  u32 v;
  Word() = default;
  VAE_FUSED_HD Word(u32 v) : v(v) {}
  VAE_FUSED_HD Word(uint32_t x) : v(x - u32{}) {}
  friend VAE_FUSED_HD Word operator+(Word x, Word y) { return x.v + y.v; }
  friend VAE_FUSED_HD Word operator-(Word x, Word y) { return x.v - y.v; }
  friend VAE_FUSED_HD Word operator&(Word x, Word y) { return x.v & y.v; }
  friend VAE_FUSED_HD Word operator^(Word x, Word y) { return x.v ^ y.v; }
  friend VAE_FUSED_HD Word operator<<(Word x, int n) { return x.v << n; }
  friend VAE_FUSED_HD Word operator>>(Word x, int n) { return x.v >> n; }
};

VAE_FUSED_HD Word bits(Float x) { return (u32)x.v; }
VAE_FUSED_HD Float real(Word x) { return (f32)x.v; }
VAE_FUSED_HD Float to_float(Word x) { return __builtin_convertvector(x.v, f32); }
VAE_FUSED_HD Float shifted_to_float(Word x, int n) {
  return __builtin_convertvector((i32)x.v >> n, f32);
}

template <typename V>
struct Pair {
  V a, b;
  Pair() = default;
  VAE_FUSED_HD Pair(V a, V b) : a(a), b(b) {}
  VAE_FUSED_HD Pair(typename V::Number x) : a(x), b(a) {}
  friend VAE_FUSED_HD Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
  friend VAE_FUSED_HD Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }
  friend VAE_FUSED_HD Pair operator*(Pair x, Pair y) { return {x.a * y.a, x.b * y.b}; }
  friend VAE_FUSED_HD Pair operator&(Pair x, Pair y) { return {x.a & y.a, x.b & y.b}; }
  friend VAE_FUSED_HD Pair operator^(Pair x, Pair y) { return {x.a ^ y.a, x.b ^ y.b}; }
  friend VAE_FUSED_HD Pair operator<<(Pair x, int n) { return {x.a << n, x.b << n}; }
  friend VAE_FUSED_HD Pair operator>>(Pair x, int n) { return {x.a >> n, x.b >> n}; }
  friend VAE_FUSED_HD Pair sqrt(Pair x) { return {sqrt(x.a), sqrt(x.b)}; }
};
using Floats = Pair<Float>;
using Bits = Pair<Word>;

VAE_FUSED_HD Bits bits(Floats x) { return {bits(x.a), bits(x.b)}; }
VAE_FUSED_HD Floats real(Bits x) { return {real(x.a), real(x.b)}; }
VAE_FUSED_HD Floats to_float(Bits x) { return {to_float(x.a), to_float(x.b)}; }
VAE_FUSED_HD Floats shifted_to_float(Bits x, int n) {
  return {shifted_to_float(x.a, n), shifted_to_float(x.b, n)};
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

// Selects elements i and j of x, then k and l of y, within each group of 16 bytes, where shuffles
// are cheap.
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

// Return the low or the high halves, in the order that a shuffle within 16 bytes produces: lanes 0
// and 1 of a, 0 and 1 of b, 2 and 3 of a, ...
VAE_FUSED_HD u32 low_halves(u64 x, u64 y) { return (u32)shuffle<0, 2, 0, 2>((f32)x, (f32)y); }
VAE_FUSED_HD u32 high_halves(u64 x, u64 y) { return (u32)shuffle<1, 3, 1, 3>((f32)x, (f32)y); }
VAE_FUSED_HD Bits packed(Wide x) { return {low_halves(x.a, x.b), low_halves(x.c, x.d)}; }
VAE_FUSED_HD Bits packed_mulhi(Wide x, Wide y) {
  const Wide z = x * y;
  return {high_halves(z.a, z.b), high_halves(z.c, z.d)};
}

// Returns the position of lane i of a Wide after packing. Lanes are numbered consecutively through
// a, b, c and d.
VAE_FUSED_HD int packed_lane(int i) {
  constexpr int kHalf = kWidth / 2;
  return i / kWidth * kWidth + i % kHalf / 2 * 4 + i % kWidth / kHalf * 2 + i % 2;
}

// Vectors in memory, which need only the alignment of their elements.
typedef float f32_in_memory __attribute__((vector_size(kBytes), aligned(4), may_alias));
typedef uint32_t u32_in_memory __attribute__((vector_size(kBytes), aligned(4), may_alias));
typedef uint64_t u64_in_memory __attribute__((vector_size(kBytes), aligned(8), may_alias));

VAE_FUSED_HD Float load(const float* from) { return *reinterpret_cast<const f32_in_memory*>(from); }
VAE_FUSED_HD void store(Float x, float* to) { *reinterpret_cast<f32_in_memory*>(to) = x.v; }
VAE_FUSED_HD void store(Word x, uint32_t* to) { *reinterpret_cast<u32_in_memory*>(to) = x.v; }
VAE_FUSED_HD Word load(const uint32_t* from) {
  return *reinterpret_cast<const u32_in_memory*>(from);
}
VAE_FUSED_HD u64 load(const uint64_t* from) {
  return *reinterpret_cast<const u64_in_memory*>(from);
}

// Half-precision loads and stores, for machines with conversion instructions. The conversion in
// math/storage.h takes ten instructions per vector.
#if VAE_FUSED_VECTOR_BYTES >= 32
constexpr bool kConvertsHalf = true;
typedef uint16_t u16 __attribute__((vector_size(kBytes / 2)));
typedef uint16_t u16_in_memory __attribute__((vector_size(kBytes / 2), aligned(2), may_alias));

VAE_FUSED_HD Float load(const math::Half* from) {
  const u16 x = *reinterpret_cast<const u16_in_memory*>(from);
#if VAE_FUSED_VECTOR_BYTES == 64
  return (f32)_mm512_maskz_cvtph_ps(0xFFFF, (__m256i)x);
#else
  return (f32)_mm256_cvtph_ps((__m128i)x);
#endif
}
VAE_FUSED_HD void store(Float x, math::Half* to) {
#if VAE_FUSED_VECTOR_BYTES == 64
  const u16 h = (u16)_mm512_maskz_cvtps_ph(0xFFFF, (__m512)x.v, _MM_FROUND_TO_NEAREST_INT);
#else
  const u16 h = (u16)_mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT);
#endif
  *reinterpret_cast<u16_in_memory*>(to) = h;
}
#else
constexpr bool kConvertsHalf = false;
#endif

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
