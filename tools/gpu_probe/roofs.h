// Roofs of the bandwidth: kernels that read and write as many tensors as the shipped ones and
// compute almost nothing. They differ in the bytes that an SM requests at a time. The fastest of
// them measures the memory's rate, and all of them show how many bytes in flight it requires.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "device.h"
#include "variants.h"

namespace vae_fused::probe {

struct Roof {
  int reads, writes;
  int vectors;  // of 16 bytes that a thread requests from each tensor before it uses any
  int blocks;   // of 256 threads per SM; 0: as many as there are steps
  KernelCost (*cost)();
  int (*launch_on)(const Streams& of, int64_t bytes, int64_t blocks, cudaStream_t stream);

  std::string name() const;
  // The bytes that an SM has requested at a time; 0 if the size of the grid does not determine it.
  int64_t bytes_in_flight() const { return int64_t{blocks} * 256 * vectors * 16 * reads; }
  // Each tensor has `bytes`, a multiple of 16 KiB.
  int launch(const Streams& of, int64_t bytes, int sms, cudaStream_t stream) const;
};

// The roofs that read 1, 2 or 3 tensors; they write 1, 1 or 2.
std::vector<Roof> roofs(int reads);

// The value that a roof writes to output `k`, for a check: the exclusive or of its inputs, plus k.
inline uint32_t roof_word(uint32_t of_inputs, int k) {
  return of_inputs + static_cast<uint32_t>(k);
}

// Counts the 32-bit words that differ on the device, so that the results of a large call can be
// checked without copying them to the host.
int count_differences(const void* a, const void* b, int64_t bytes, unsigned int* count,
                      cudaStream_t stream);

}  // namespace vae_fused::probe
