// Memory, events, graphs and device properties: see emu/runtime.h.
#include "emu/runtime.h"

#include <chrono>
#include <cstdlib>
#include <cstring>

namespace emu {

struct Event {
  std::chrono::steady_clock::time_point time;
};

}  // namespace emu

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated device");
  properties->totalGlobalMem = size_t{1} << 30;
  properties->major = 9;
  properties->multiProcessorCount = emu::config().sm_count;
  properties->l2CacheSize = 1 << 14;
  return cudaSuccess;
}

// cudaMalloc aligns to 256 bytes.
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *memory || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void* memory) {
  const cudaError_t error = emu::synchronize();
  std::free(memory);
  return error;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  const cudaError_t error = emu::synchronize();
  if (error == cudaSuccess) std::memcpy(to, from, bytes);
  return error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return emu::enqueue({[=] { std::memcpy(to, from, bytes); }, dim3(1), dim3(1)}, stream);
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  const cudaError_t error = emu::synchronize();
  if (error == cudaSuccess) std::memset(memory, value, bytes);
  return error;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = emu::create_stream();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  emu::destroy_stream(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  emu::begin_capture(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = new emu::Graph(emu::end_capture(stream));
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new emu::Event();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  const cudaError_t error = emu::synchronize();
  event->time = std::chrono::steady_clock::now();
  return error;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) { return emu::synchronize(); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new emu::Graph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return emu::replay(*exec, stream);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
