// The CUDA runtime as the probe uses it: errors as exceptions, memory with guards around it,
// events, graphs, and the facts about the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace vae_fused::probe {

struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(int error, const char* what) {
  if (error == 0) return;
  throw CudaError(std::string(what) + ": " + cudaGetErrorString(static_cast<cudaError_t>(error)));
}

struct Device {
  std::string name;
  int major = 0, minor = 0, sms = 0, driver = 0, runtime = 0;
  int64_t l2_bytes = 0, memory_bytes = 0;
};

// Throws CudaError with the reason if this machine has no device.
inline Device find_device() {
  Device device;
  cudaRuntimeGetVersion(&device.runtime);
  if (cudaDriverGetVersion(&device.driver) != cudaSuccess || device.driver == 0) {
    throw CudaError("no CUDA driver on this machine");
  }
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) check(error, "no CUDA device");
  if (count == 0) throw CudaError("no CUDA device on this machine");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  device.name = properties.name;
  device.major = properties.major;
  device.minor = properties.minor;
  device.sms = properties.multiProcessorCount;
  device.l2_bytes = properties.l2CacheSize;
  device.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return device;
}

// Device memory between two guards. `intact` returns whether the guards are unmodified.
class Memory {
 public:
  static constexpr size_t kGuard = 512;

  explicit Memory(size_t bytes) : bytes_(bytes) {
    check(cudaMalloc(&block_, bytes + 2 * kGuard), "cudaMalloc");
    check(cudaMemset(block_, kMark, bytes + 2 * kGuard), "cudaMemset");
  }
  Memory(const Memory&) = delete;
  ~Memory() { cudaFree(block_); }

  void* data() const { return static_cast<char*>(block_) + kGuard; }
  size_t bytes() const { return bytes_; }

  void upload(const void* from) {
    check(cudaMemcpy(data(), from, bytes_, cudaMemcpyHostToDevice), "upload");
  }
  void download(void* to) const {
    check(cudaMemcpy(to, data(), bytes_, cudaMemcpyDeviceToHost), "download");
  }

  bool intact() const {
    std::vector<unsigned char> guards(2 * kGuard);
    const char* const block = static_cast<const char*>(block_);
    check(cudaMemcpy(guards.data(), block, kGuard, cudaMemcpyDeviceToHost), "guard");
    check(
        cudaMemcpy(guards.data() + kGuard, block + kGuard + bytes_, kGuard, cudaMemcpyDeviceToHost),
        "guard");
    for (const unsigned char byte : guards) {
      if (byte != kMark) return false;
    }
    return true;
  }

 private:
  static constexpr int kMark = 0xA5;
  void* block_ = nullptr;
  size_t bytes_;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
  Stream(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_;
};

// Measures the time between two points of a stream.
class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  Stopwatch(const Stopwatch&) = delete;
  ~Stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  double microseconds(const std::function<void()>& work) {
    check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    work();
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return 1e3 * static_cast<double>(milliseconds);
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
};

// The launches of `work` on a stream, captured as a graph.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& work) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    work();
    cudaGraph_t graph;
    check(cudaStreamEndCapture(stream, &graph), "end capture");
    const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "cudaGraphInstantiate");
  }
  Graph(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(exec_); }

  void launch(cudaStream_t stream) const {
    check(cudaGraphLaunch(exec_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

// The registers of a thread, its bytes of local memory (spills and arrays), the shared memory of a
// block, and the blocks that fit on an SM.
struct KernelCost {
  int registers = 0, blocks_per_sm = 0;
  int64_t local_bytes = 0, shared_bytes = 0;
};

template <typename Kernel>
KernelCost cost_of(Kernel* kernel, int threads) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  KernelCost cost{attributes.numRegs, 0, static_cast<int64_t>(attributes.localSizeBytes),
                  static_cast<int64_t>(attributes.sharedSizeBytes)};
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&cost.blocks_per_sm, kernel, threads, 0),
        "occupancy");
  return cost;
}

}  // namespace vae_fused::probe
