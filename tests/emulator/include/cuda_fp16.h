// binary16 as a storage type: conversions to and from float, rounding to nearest even.
#pragma once

#include <cstring>

#include "emu/types.h"

struct alignas(2) __half_raw {
  unsigned short x;
};

struct alignas(2) __half {
  unsigned short bits;
  __half() = default;
  constexpr __half(__half_raw raw) : bits(raw.x) {}
  operator __half_raw() const { return {bits}; }
};
using half = __half;

struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

// value = (-1)^sign * 2^(exponent - 25) * (1024 + fraction). Exponent 0 has no hidden bit.
inline float __half2float(__half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 31u, fraction = h.bits & 1023u;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(fraction) * 0x1p-24f;
    uint32_t word;
    std::memcpy(&word, &value, 4);
    word |= sign;
    std::memcpy(&value, &word, 4);
    return value;
  }
  const uint32_t word =
      sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | (fraction << 13);
  std::memcpy(&value, &word, 4);
  return value;
}

inline __half __float2half_rn(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const auto sign = static_cast<unsigned short>((word >> 16) & 0x8000u);
  const uint32_t magnitude = word & 0x7FFFFFFFu;
  const auto make = [sign](uint32_t bits) {
    return __half(__half_raw{static_cast<unsigned short>(sign | bits)});
  };
  if (magnitude > 0x7F800000u) return __half(__half_raw{0x7FFF});  // the NaN of the device
  if (magnitude >= 0x477FF000u) return make(0x7C00u);  // 65520 and above round to infinity
  const int exponent = static_cast<int>(magnitude >> 23) - 112;
  // Rounds the significand to units in the last place of half. This drops 13 bits, or more if the
  // result is subnormal.
  const int shift = exponent > 0 ? 13 : 14 - exponent;
  if (shift > 24) return make(0);
  const uint32_t significand = (magnitude & 0x7FFFFFu) | 0x800000u;
  const uint32_t kept = significand >> shift, rest = significand & ((1u << shift) - 1);
  const uint32_t tie = 1u << (shift - 1);
  const uint32_t rounded = kept + (rest > tie || (rest == tie && (kept & 1u)) ? 1u : 0u);
  // The hidden bit adds 1 to the exponent field, and so does a carry out of the fraction.
  return make(exponent > 0 ? (static_cast<uint32_t>(exponent - 1) << 10) + rounded : rounded);
}

inline __half __float2half(float value) { return __float2half_rn(value); }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half(__half_raw{bits}); }
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
