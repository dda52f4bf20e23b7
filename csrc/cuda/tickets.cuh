// Tickets: how the blocks of one launch find out which of them finishes last.
//
// Each launch that needs one counts on a slot of a device array. The counter wraps back to 0 when
// the last block has taken its ticket, so a slot is ready for the next launch that uses it. What
// must never happen is two launches counting on one slot at the same time:
//
//   * launches on one stream are ordered, so a stream may keep its slot: eager mode, one slot for
//     each stream, found by the stream's id, which is unique for the life of the process (its
//     handle is not);
//   * a captured launch is replayed on any stream, at any time: a slot of its own, never reused.
//     (Two instantiations of one captured graph must not run at the same time.)
//
// The array is static and zeroed when the module loads: a counter that is allocated or zeroed by a
// framework lives outside the graph that uses it, and that is how others' went wrong. When the
// slots are used up the caller launches a second kernel instead.
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

// Whether the calling block is the last of the grid; the same answer in all its threads. What the
// other blocks wrote before they called is then visible through __ldcg.
__device__ __forceinline__ bool last_block(int slot) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = count_in_order(&ticket_counters[slot], gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  return last;
}

// The slot of a launch on `stream`; kNoTicket when there is none left.
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
