// Host functions: the part of the CUDA runtime that launchers use, and the emulator's controls.
//
// A launch is a closure over its arguments. By default, it runs at once. With `config().deferred`,
// it waits in its stream until `synchronize()`, which interleaves whole blocks of the launches at
// the head of all streams in a seeded order. Only one host thread may use the emulator.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "emu/types.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorUnknown = 999,
};

enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2,
};

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};

namespace emu {
class Stream;
}
using cudaStream_t = emu::Stream*;  // null is the default stream, which is like any other here

namespace emu {

struct Config {
  uint64_t seed = 1;   // determines the order of blocks, threads and streams
  int sm_count = 132;  // the result of cudaDeviceGetAttribute
  int device = 0;
  bool deferred = false;  // launches wait for synchronize()
  // The number of blocks above which kernels give each block more work. It is small, so that small
  // calls exercise all the ways in which work is divided among blocks.
  int enough_blocks = 12;
};
Config& config();

// Restarts the random order from config().seed.
void reseed(uint64_t seed);

// The memory of one argument of a launch.
struct Argument {
  const void* data;
  size_t size;
};

// One recorded launch. `body` runs once per thread.
struct Work {
  std::function<void()> body;
  dim3 grid, block;
  // An executor uses the launched function and its arguments instead of `body`.
  const void* kernel = nullptr;
  std::vector<Argument> arguments;
  std::shared_ptr<const void> owner;  // owns the arguments
};
using Graph = std::vector<std::shared_ptr<const Work>>;

// Runs whole launches in place of the emulated device. Tests set an executor that runs the machine
// code of the kernels. Returns "" or a fault report.
using Executor = std::function<std::string(const Work&)>;
void set_executor(Executor executor);

Stream* create_stream();
void destroy_stream(Stream* stream);  // drops its pending launches
void begin_capture(Stream* stream);
Graph end_capture(Stream* stream);
cudaError_t replay(const Graph& graph, Stream* stream);

// Runs the pending launches of all streams. After a fault, it drops the remaining launches and
// returns cudaErrorLaunchFailure.
cudaError_t synchronize();

// Returns and clears the report of the last fault. It is empty if there was no fault.
std::string take_fault();

// The number of launches since the program started. Captured launches count when they are replayed.
uint64_t launches();

cudaError_t enqueue(Work work, Stream* stream);

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument per parameter");
  if (shared_bytes != 0) return cudaErrorNotSupported;
  using Copies = std::tuple<std::decay_t<Parameters>...>;
  const auto copies = std::make_shared<const Copies>(
      std::decay_t<Parameters>(std::forward<Arguments>(arguments))...);
  std::vector<Argument> bytes;
  std::apply([&](const auto&... copy) { (bytes.push_back({&copy, sizeof copy}), ...); }, *copies);
  return enqueue({[kernel, copies] { std::apply(kernel, *copies); }, grid, block,
                  reinterpret_cast<const void*>(kernel), std::move(bytes), copies},
                 stream);
}

}  // namespace emu

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id = nullptr);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();

template <typename T>
cudaError_t cudaGetSymbolAddress(void** address, const T& symbol) {
  *address = const_cast<void*>(static_cast<const void*>(&symbol));
  return cudaSuccess;
}
