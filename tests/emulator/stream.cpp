// Streams, captured graphs, the order in which blocks run, and the CUDA runtime functions that
// launchers call.
#include <algorithm>
#include <deque>
#include <numeric>

#include "block.h"
#include "race.h"
#if defined(EMU_TSAN)
#include <thread>
#endif

namespace emu {

namespace {

// A pending launch: the blocks that still have to run, and the launch that precedes it.
struct Launch {
  std::shared_ptr<const Work> work;
  std::vector<uint32_t> order;  // block indices, the next one last
  Launch* previous;
  alignas(8) char token[8];
};

// All launches since the host last waited. The objects that a launch uses must live until the next
// wait.
std::vector<std::unique_ptr<Launch>> unfinished;

detail::Random random_order(1);
Executor executor;
std::string fault;
cudaError_t last_error = cudaSuccess;
uint64_t launch_count = 0;
unsigned long long next_id = 1;

cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

class Stream {
 public:
  const unsigned long long id = next_id++;
  bool capturing = false;
  unsigned long long capture_id = 0;
  Graph graph;
  std::deque<Launch*> queue;
  Launch* newest = nullptr;

  void submit(std::shared_ptr<const Work> work) {
    Launch* const launch = unfinished.emplace_back(std::make_unique<Launch>()).get();
    const dim3 grid = work->grid;
    launch->work = std::move(work);
    launch->order.resize(static_cast<size_t>(grid.x) * grid.y * grid.z);
    std::iota(launch->order.begin(), launch->order.end(), 0u);
    for (size_t i = launch->order.size(); i > 1; --i) {
      std::swap(launch->order[i - 1], launch->order[random_order.below(static_cast<uint32_t>(i))]);
    }
    launch->previous = newest;
    newest = launch;
    queue.push_back(launch);
    ++launch_count;
  }

  // Runs one block of the launch at the head of the queue. An executor runs all blocks of the
  // launch.
  void step() {
    Launch& launch = *queue.front();
    if (executor) {
      fault = executor(*launch.work);
      queue.pop_front();
      return;
    }
    const dim3 grid = launch.work->grid;
    const uint32_t i = launch.order.back();
    launch.order.pop_back();
    const uint3 index = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
    void* const after = launch.previous ? launch.previous->token : nullptr;
    const auto run = [&] {
      fault = detail::run_block(*launch.work, index, random_order, after, launch.token);
    };
#if defined(EMU_TSAN)
    std::thread(run).join();  // a new OS thread has fresh __shared__ variables
#else
    run();
#endif
    if (launch.order.empty()) queue.pop_front();
  }
};

namespace {

std::vector<std::unique_ptr<Stream>>& streams() {
  static std::vector<std::unique_ptr<Stream>> all;
  if (all.empty()) all.push_back(std::make_unique<Stream>());
  return all;
}

Stream& of(Stream* stream) { return stream ? *stream : *streams().front(); }

void forget_queues() {
  for (auto& stream : streams()) {
    stream->queue.clear();
    stream->newest = nullptr;
  }
}

}  // namespace

Config& config() {
  static Config instance;
  return instance;
}

void reseed(uint64_t seed) {
  config().seed = seed;
  random_order = detail::Random(seed);
}

void set_executor(Executor next) { executor = std::move(next); }

Stream* create_stream() { return streams().emplace_back(std::make_unique<Stream>()).get(); }

void destroy_stream(Stream* stream) {
  auto& all = streams();
  const auto it = std::find_if(all.begin() + 1, all.end(),
                               [=](const auto& owned) { return owned.get() == stream; });
  if (it != all.end()) all.erase(it);
}

void begin_capture(Stream* stream) {
  of(stream).capturing = true;
  of(stream).capture_id = next_id++;
}

Graph end_capture(Stream* stream) {
  of(stream).capturing = false;
  return std::exchange(of(stream).graph, {});
}

cudaError_t replay(const Graph& graph, Stream* stream) {
  for (const auto& work : graph) of(stream).submit(work);
  return config().deferred ? cudaSuccess : synchronize();
}

cudaError_t enqueue(Work work, Stream* stream) {
  const auto threads = static_cast<uint64_t>(work.block.x) * work.block.y * work.block.z;
  const auto blocks = static_cast<uint64_t>(work.grid.x) * work.grid.y * work.grid.z;
  if (threads == 0 || threads > 1024 || work.block.z > 64 || blocks == 0 ||
      work.grid.x > 0x7FFFFFFFu || work.grid.y > 65535 || work.grid.z > 65535) {
    return failed(cudaErrorInvalidConfiguration);
  }
  auto shared = std::make_shared<const Work>(std::move(work));
  if (of(stream).capturing) {
    of(stream).graph.push_back(std::move(shared));
    return cudaSuccess;
  }
  of(stream).submit(std::move(shared));
  return config().deferred ? cudaSuccess : synchronize();
}

cudaError_t synchronize() {
  std::vector<Stream*> busy;
  for (;;) {
    busy.clear();
    for (auto& stream : streams()) {
      if (!stream->queue.empty()) busy.push_back(stream.get());
    }
    if (busy.empty()) break;
    busy[random_order.below(static_cast<uint32_t>(busy.size()))]->step();
    if (!fault.empty()) {
      forget_queues();
      // Some threads are stuck inside these launches, so the launches must never be destroyed.
      static std::vector<std::vector<std::unique_ptr<Launch>>> stuck;
      stuck.push_back(std::exchange(unfinished, {}));
      return failed(cudaErrorLaunchFailure);
    }
  }
  for (auto& stream : streams()) {
    if (stream->newest) detail::race::acquire(stream->newest->token);
  }
  detail::host_has_waited();
  forget_queues();
  unfinished.clear();
  return cudaSuccess;
}

std::string take_fault() { return std::exchange(fault, {}); }
uint64_t launches() { return launch_count; }

}  // namespace emu

cudaError_t cudaGetLastError() { return std::exchange(emu::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return emu::last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "cudaError";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorNotSupported:
      return "operation not supported";
    default:
      return cudaGetErrorName(error);
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = emu::config().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  emu::config().device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = emu::config().sm_count;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    default:
      return emu::failed(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = emu::of(stream).id;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status);
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id) {
  const emu::Stream& of = emu::of(stream);
  *status = of.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id && of.capturing) *id = of.capture_id;
  return cudaSuccess;
}

// This waits for all streams, which is more than CUDA requires.
cudaError_t cudaStreamSynchronize(cudaStream_t) { return emu::synchronize(); }
cudaError_t cudaDeviceSynchronize() { return emu::synchronize(); }
