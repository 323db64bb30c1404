#include "kernels/cuda/emulation/cuda_runtime.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "base/check.h"

using Work = std::function<void()>;

// One lock for everything: a kernel runs on the thread that waits for it.
static std::recursive_mutex& lock() {
  static std::recursive_mutex mutex;
  return mutex;
}
using Locked = std::lock_guard<std::recursive_mutex>;

struct EmulatedGraph {
  std::vector<Work> work;
};

struct EmulatedStream {
  std::deque<Work> work;
  uint64_t put = 0, done = 0;
  EmulatedGraph* capture = nullptr;

  void run_to(uint64_t position) {
    while (done < position) {
      Work next = std::move(work.front());
      work.pop_front();
      next();
      ++done;
    }
  }
};

struct EmulatedEvent {
  EmulatedStream* stream = nullptr;  // null: not recorded
  uint64_t position = 0;
  double seconds = 0;
};

namespace lowkey::kernels::cuda::emulation {
namespace {

struct Memory {
  std::map<void*, size_t> blocks;
  size_t bytes = 0;
};
Memory& memory() {
  static Memory instance;
  return instance;
}

std::set<EmulatedStream*>& streams() {
  static std::set<EmulatedStream*> instance;
  return instance;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

cudaError_t allocate(void** out, size_t bytes, bool on_device) {
  const Locked guard(lock());
  if (on_device && memory().bytes + bytes > machine().device_bytes) return cudaErrorMemoryAllocation;
  void* block = nullptr;
  if (::posix_memalign(&block, 256, bytes == 0 ? 1 : bytes) != 0) return cudaErrorMemoryAllocation;
  std::memset(block, 0xa5, bytes);
  if (on_device) {
    memory().blocks[block] = bytes;
    memory().bytes += bytes;
  }
  *out = block;
  return cudaSuccess;
}

}  // namespace

Machine& machine() {
  static Machine instance;
  return instance;
}

size_t allocated_bytes() {
  const Locked guard(lock());
  return memory().bytes;
}

void enqueue(cudaStream_t stream, Work work) {
  const Locked guard(lock());
  if (stream->capture != nullptr) {
    stream->capture->work.push_back(std::move(work));
    return;
  }
  stream->work.push_back(std::move(work));
  ++stream->put;
}

}  // namespace lowkey::kernels::cuda::emulation

using namespace lowkey::kernels::cuda::emulation;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    default:
      return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    default:
      return cudaGetErrorName(error);
  }
}

cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = machine().driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = machine().runtime;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = machine().devices;
  if (machine().driver < machine().runtime) return cudaErrorInsufficientDriver;
  return machine().devices > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= machine().devices) return cudaErrorInvalidDevice;
  *properties = {.uuid = {},
                 .name = {},
                 .major = 9,
                 .minor = 0,
                 .multiProcessorCount = 4,
                 .totalGlobalMem = machine().device_bytes,
                 .sharedMemPerBlockOptin = size_t{227} << 10};
  std::snprintf(properties->name, sizeof(properties->name), "emulated device %d", device);
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return device >= 0 && device < machine().devices ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = machine().device_bytes;
  *free = *total - std::min(*total, allocated_bytes());
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** out, size_t bytes) {
  return allocate(out, bytes, true);
}

cudaError_t cudaFree(void* block) {
  const Locked guard(lock());
  if (block == nullptr) return cudaSuccess;
  for (EmulatedStream* stream : streams()) stream->run_to(stream->put);  // as the real one waits
  const auto found = memory().blocks.find(block);
  if (found == memory().blocks.end()) return cudaErrorInvalidValue;
  memory().bytes -= found->second;
  memory().blocks.erase(found);
  std::free(block);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  return allocate(out, bytes, false);
}

cudaError_t cudaFreeHost(void* block) {
  std::free(block);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  enqueue(stream, [=] {
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  enqueue(stream, [=] {
    if (bytes > 0) std::memset(to, value, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Locked guard(lock());
  *stream = new EmulatedStream;
  streams().insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Locked guard(lock());
  const cudaError_t status = cudaStreamSynchronize(stream);
  streams().erase(stream);
  delete stream;
  return status;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Locked guard(lock());
  if (stream->capture != nullptr) return cudaErrorInvalidValue;
  stream->run_to(stream->put);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->stream == nullptr || event->stream == stream) return cudaSuccess;
  enqueue(stream, [from = event->stream, position = event->position] { from->run_to(position); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const cudaError_t status = cudaEventSynchronize(event);  // its work writes to it
  delete event;
  return status;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Locked guard(lock());
  enqueue(stream, [=] { event->seconds = now(); });
  event->stream = stream;
  event->position = stream->put;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Locked guard(lock());
  if (event->stream != nullptr) event->stream->run_to(event->position);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Locked guard(lock());
  return event->stream == nullptr || event->stream->done >= event->position ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = static_cast<float>((end->seconds - begin->seconds) * 1e3);
  return cudaEventQuery(end);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Locked guard(lock());
  if (stream->capture != nullptr) return cudaErrorInvalidValue;
  stream->capture = new EmulatedGraph;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Locked guard(lock());
  if (stream->capture == nullptr) return cudaErrorInvalidValue;
  *graph = stream->capture;
  stream->capture = nullptr;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new EmulatedGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  enqueue(stream, [executable] {
    for (const Work& work : executable->work) work();
  });
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
