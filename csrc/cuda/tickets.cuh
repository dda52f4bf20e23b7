// Tickets determine which thread block of a launch finishes last.
//
// Each launch that needs tickets uses one slot of a device array as its counter. The counter wraps
// back to 0 when the last block has taken its ticket, so the slot is ready for the next launch. Two
// launches must never use the same slot at the same time:
//
//   * Launches on one stream are ordered, so in eager mode each stream keeps one slot. The slot is
//     looked up by the stream's id, which is unique for the lifetime of the process. The stream's
//     handle is not unique, because CUDA reuses handles.
//   * A captured launch can be replayed on any stream at any time, so it has a separate slot, which
//     is never reused. Two instantiations of one captured graph must not run concurrently.
//
// The array is static and is zeroed when the module loads. A counter that a framework allocates or
// zeroes exists outside the graph that uses it, which has led to errors in other libraries. When
// all slots are used up, the caller launches a second kernel instead.
#pragma once

#include <atomic>
#include <mutex>
#include <unordered_map>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace vae_fused::cuda {

constexpr int kStreamSlots = 1024;
constexpr int kCaptureSlots = 1 << 16;  // 256 KiB of device memory
constexpr int kNoTicket = -1;

static __device__ unsigned int ticket_counters[kStreamSlots + kCaptureSlots];

// Returns, in all threads, whether the calling block is the last of the grid. In the last block,
// all writes that the other blocks made before their calls are visible through __ldcg.
__device__ __forceinline__ bool last_block(int slot) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = count_in_order(&ticket_counters[slot], gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  return last;
}

// Sets `slot` to the slot of a launch on `stream`, or to kNoTicket if none is left.
inline cudaError_t ticket_slot(cudaStream_t stream, int* slot) {
  static std::atomic<int> captured{0};
  static std::mutex mutex;
  static std::unordered_map<unsigned long long, int> slots;

  cudaStreamCaptureStatus status;
  cudaError_t error = reported(cudaStreamIsCapturing(stream, &status));
  if (error != cudaSuccess) return error;
  if (status != cudaStreamCaptureStatusNone) {
    const int next = captured.load() < kCaptureSlots ? captured.fetch_add(1) : kCaptureSlots;
    *slot = next < kCaptureSlots ? kStreamSlots + next : kNoTicket;
    return cudaSuccess;
  }
  unsigned long long id = 0;
  error = reported(cudaStreamGetId(stream, &id));
  if (error != cudaSuccess) return error;
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = slots.find(id);
  if (found != slots.end()) {
    *slot = found->second;
  } else if (slots.size() < kStreamSlots) {
    *slot = static_cast<int>(slots.size());
    slots.emplace(id, *slot);
  } else {
    *slot = kNoTicket;
  }
  return cudaSuccess;
}

}  // namespace vae_fused::cuda
