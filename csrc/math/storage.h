// 16-bit storage types, and their conversion to and from the arithmetic type.
//
// Conversions operate on the bits, without branches, so that a loop over a tile vectorises on every
// instruction set. They round to nearest even. A GPU has an instruction for most of them.
#pragma once

#include "math/platform.h"

namespace vae_fused::math {

struct Half {
  uint16_t u;
};

struct BFloat16 {
  uint16_t u;
};

// The arithmetic type for a storage type.
template <typename S>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <typename S>
using arithmetic_t = typename Arithmetic<S>::type;

// Whether a storage type is coarse enough to hide the errors of the hardware approximations.
template <typename S>
constexpr bool kCoarse = sizeof(S) == 2;

VAE_FUSED_HD float widen(float x) { return x; }
VAE_FUSED_HD double widen(double x) { return x; }
VAE_FUSED_HD float widen(uint8_t x) { return x; }  // a mask or a pixel
VAE_FUSED_HD float widen(int32_t x) { return static_cast<float>(x); }
VAE_FUSED_HD double widen(int64_t x) { return static_cast<double>(x); }

VAE_FUSED_HD float widen(BFloat16 x) { return real(static_cast<uint32_t>(x.u) << 16); }

// Multiplying by 2^112 changes the exponent bias from 15 to 127, and this also works for
// subnormals. An exponent of all ones (inf, NaN) is set separately.
VAE_FUSED_HD float widen(Half x) {
#if defined(VAE_FUSED_HAS_CVT_F16)
  return cvt_f32_f16(x.u);
#else
  const uint32_t magnitude = static_cast<uint32_t>(x.u & 0x7FFFu) << 13;
  const uint32_t special = magnitude >= 0x0F800000u ? 0x7F800000u : 0u;
  const uint32_t scaled = bits(real(magnitude) * 5.192296858534828e33f);
  return real(scaled | special | (static_cast<uint32_t>(x.u & 0x8000u) << 16));
#endif
}

VAE_FUSED_HD void narrow(float x, float& out) { out = x; }
VAE_FUSED_HD void narrow(double x, double& out) { out = x; }

VAE_FUSED_HD void narrow(float x, BFloat16& out) {
#if defined(VAE_FUSED_HAS_CVT_BF16)
  out.u = cvt_bf16_f32(x);
#else
  const uint32_t b = bits(x);
  const uint32_t rounded = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
  out.u = static_cast<uint16_t>((b & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
#endif
}

// If the result is normal, half an ulp is added at bit 13, which rounds to even, and the exponent
// bias is changed. If the result is subnormal, adding 0.5 leaves the rounded multiple of 2^-24 in
// the low bits. Values of 65520 and above become inf.
VAE_FUSED_HD void narrow(float x, Half& out) {
#if defined(VAE_FUSED_HAS_CVT_F16)
  out.u = cvt_f16_f32(x);
#else
  const uint32_t b = bits(x);
  const uint32_t magnitude = b & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  const uint32_t subnormal = bits(real(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t h = magnitude < 0x38800000u ? subnormal : normal;
  h = magnitude >= 0x477FF000u ? 0x7C00u : h;
  h = magnitude > 0x7F800000u ? 0x7E00u : h;
  out.u = static_cast<uint16_t>(h | ((b >> 16) & 0x8000u));
#endif
}

// Two neighbouring elements in one 32-bit word. A GPU converts to and from either half of a
// register. Extracting the second bfloat16 by itself would take a PRMT, a move and a shift.
template <typename S>
struct Pair {
  uint32_t u;
};

VAE_FUSED_HD void widen(Pair<BFloat16> x, float& first, float& second) {
  first = real(x.u << 16);
  second = real(x.u & 0xFFFF0000u);
}

VAE_FUSED_HD void widen(Pair<Half> x, float& first, float& second) {
  first = widen(Half{static_cast<uint16_t>(x.u)});
  second = widen(Half{static_cast<uint16_t>(x.u >> 16)});
}

template <typename S>
VAE_FUSED_HD void narrow(float first, float second, Pair<S>& out) {
  S low, high;
  narrow(first, low);
  narrow(second, high);
  out.u = low.u | static_cast<uint32_t>(high.u) << 16;
}

}  // namespace vae_fused::math
