// Selects the function that computes the tiles of a call. One binary contains these functions for
// several instruction sets, each of which is compiled in a separate file (see
// latent/tiles_avx2.cpp).
#pragma once

#include "cpu/capability.h"
#include "iteration/operand.h"
#include "params/device.h"

namespace vae_fused::cpu {

// The number of tiles per task. With fewer tiles, waking a second thread would cost more than it
// saves.
constexpr int64_t kGrain = 8;

// One function, compiled for each dtype, in the order of DType.
struct Bodies {
  Body by_dtype[4];

  Body operator[](DType dtype) const { return by_dtype[static_cast<int>(dtype)]; }
};

// Declares `name`, a table of functions that each instruction set defines in its own namespace.
#define VAE_FUSED_ISA_TABLE(Table, name) \
  namespace baseline {                   \
  extern const Table name;               \
  }                                      \
  namespace avx2 {                       \
  extern const Table name;               \
  }                                      \
  namespace avx512 {                     \
  extern const Table name;               \
  }

// The table for the instruction set in use.
#if defined(VAE_FUSED_CPU_TARGETS)
#define VAE_FUSED_TABLE_IN_USE(name) \
  ::vae_fused::cpu::table_in_use(baseline::name, avx2::name, avx512::name)
#else
#define VAE_FUSED_TABLE_IN_USE(name) baseline::name
#endif

template <typename Table>
const Table& table_in_use(const Table& baseline, const Table& avx2, const Table& avx512) {
  switch (capability()) {
    case Capability::kAvx512:
      return avx512;
    case Capability::kAvx2:
      return avx2;
    default:
      return baseline;
  }
}

}  // namespace vae_fused::cpu
