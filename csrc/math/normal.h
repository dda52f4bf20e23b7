// Converts four random words to standard normals (Box and Muller 1958), in PyTorch's bit layout.
//
//   r = sqrt(-2 ln u1),  t = 2 pi u2,  (r cos t, r sin t)  are two independent N(0, 1)
//
//   float   4 normals a block: (u1, u2) = (w0, w1), then (w2, w3);  u = 2^-32 w (+ 2^-33 in u1)
//   double  2 normals a block: u1 = (w0, w1), u2 = (w2, w3);        u = 2^-32 w + 2^-64 w' + 2^-65
//
// For 16-bit types on a GPU, r and t may be approximate, and the normals are then within 1e-5 of
// the exact ones. The hardware logarithm has no correct digits near u1 = 1, where
// -2 ln u1 = 2f + f^2 + ... with f = 1 - u1. Below f = 2^-11, where r is at most 0.03, only the
// term 2f is used, which changes r by at most 4e-6. The error of the hardware logarithm would
// change r by 5e-6 at f = 2^-11, and by more for smaller f.
//
// Element i of a tensor uses normal i % n of block i / n, where n = kNormalsPerBlock. For 16-bit
// types the normals are computed in float. Adding half a step keeps u1 above 0, so r is at most
// sqrt(66 ln 2) = 6.76 in float and 9.49 in double.
#pragma once

#include "math/elementary.h"
#include "math/philox.h"

namespace vae_fused::math {

template <typename T>
constexpr int kNormalsPerBlock = sizeof(T) == 8 ? 2 : 4;

template <bool coarse, typename T>
VAE_FUSED_HD T radius(T u) {
  if constexpr (coarse && kHasApproximations) {
    const T f = T(1) - u, far = T(-1.3862943611198906) * lg2_approx(u);
    return sqrt_approx(f < T(0x1p-11) ? f + f : far);
  } else {
    return sqrt(log<-2>(u));
  }
}

// `angle` is in the unit of `polar`.
template <bool coarse, typename T>
VAE_FUSED_HD void box_muller(T u1, T angle, T& first, T& second) {
  const T r = radius<coarse>(u1);
  if constexpr (coarse && kHasApproximations) {
    first = r * cos_approx(angle);
    second = r * sin_approx(angle);
  } else {
    polar(r, angle, first, second);
  }
}

template <typename W>
VAE_FUSED_HD auto uniform(W w) {
  // 2^-32 * float(w) is exact, so a fused and an unfused multiply-add agree.
  return to_float(w) * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
}

VAE_FUSED_HD double uniform(uint32_t w, uint32_t w_low) {
  constexpr double kStep = 2.3283064365386963e-10;  // 2^-32
  return static_cast<double>(w) * kStep +
         (static_cast<double>(w_low) * (kStep * kStep) + kStep * kStep * 0.5);
}

// Returns 2 pi u2 as PyTorch computes it: the rounded product of u2 and the rounded 2 pi. The exact
// angle would change normals by up to 2.7e-6, which is more than the noise contract allows. Adding
// half a step to u2 would change the angle by 7e-10. It is omitted, because the change would be
// rounded away except near 0, where it is far below the contract's bound. The first step of the
// hardware sine has an error relative to its argument, so it receives the signed angle, whose
// magnitude is smaller.
template <bool coarse, typename W>
VAE_FUSED_HD auto angle(W w) {
  constexpr float kStep = 1.4629180792671596e-9f;
  if constexpr (coarse && kHasApproximations) {
    return shifted_to_float(w, 0) * kStep;
  } else {
    return to_float(w) * kStep;
  }
}

template <bool coarse = false, typename W, typename F>
VAE_FUSED_HD void normals(const Words<W>& words, F (&out)[4]) {
  box_muller<coarse>(uniform(words.w[0]), angle<coarse>(words.w[1]), out[0], out[1]);
  box_muller<coarse>(uniform(words.w[2]), angle<coarse>(words.w[3]), out[2], out[3]);
}

// The two words from which normal r of a block's four normals is computed.
template <typename W>
VAE_FUSED_HD void words_of_pair(const Words<W>& words, W r, W& first, W& second) {
  const W later = W(0) - (r >> 1);  // all ones if r is 2 or 3
  first = words.w[0] ^ ((words.w[0] ^ words.w[2]) & later);
  second = words.w[1] ^ ((words.w[1] ^ words.w[3]) & later);
}

template <bool coarse = false>
VAE_FUSED_HD void normals(const Words<uint32_t>& words, double (&out)[2]) {
  box_muller<coarse>(uniform(words.w[0], words.w[1]), uniform(words.w[2], words.w[3]), out[0],
                     out[1]);
}

// Computes a single normal, at `index` in a noise stream.
template <typename T, bool coarse = false, class Keys>
VAE_FUSED_HD T normal_at(const Keys& keys, uint64_t offset, uint64_t index) {
  constexpr int n = kNormalsPerBlock<T>;
  T block[n];
  normals<coarse>(philox(keys, offset + index / n), block);
  T value = block[0];
  for (int j = 1; j < n; ++j) value = index % n == static_cast<uint64_t>(j) ? block[j] : value;
  return value;
}

}  // namespace vae_fused::math
