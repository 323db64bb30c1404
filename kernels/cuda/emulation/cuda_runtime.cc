#include "kernels/cuda/emulation/cuda_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "kernels/cuda/emulation/state.h"

namespace lowkey::kernels::cuda::emulation {
namespace {

struct Memory {
  std::map<const void*, size_t> device, host;
  size_t device_bytes = 0;
};
Memory& memory() {
  static Memory instance;
  return instance;
}

std::set<int>& contexts() {
  static std::set<int> instance;
  return instance;
}

thread_local int current_device = 0;

cudaError_t allocate(void** out, size_t bytes, bool on_device) {
  const Locked guard(lock());
  if (breaks_capture()) return cudaErrorStreamCaptureUnsupported;
  begin_context();
  if (on_device && !take_device_bytes(bytes)) return cudaErrorMemoryAllocation;
  void* block = nullptr;
  if (::posix_memalign(&block, 256, bytes == 0 ? 1 : bytes) != 0) return cudaErrorMemoryAllocation;
  std::memset(block, 0xa5, bytes);
  (on_device ? memory().device : memory().host)[block] = bytes;
  ++(on_device ? counted().device_allocations : counted().host_allocations);
  *out = block;
  return cudaSuccess;
}

}  // namespace

std::recursive_mutex& lock() {
  static std::recursive_mutex mutex;
  return mutex;
}

Machine& machine() {
  static Machine instance;
  return instance;
}

size_t allocated_bytes() {
  const Locked guard(lock());
  return memory().device_bytes;
}

Calls& counted() {
  static Calls instance;
  return instance;
}

Calls calls() {
  const Locked guard(lock());
  return counted();
}

void begin_context() {
  contexts().insert(current_device);
}

std::set<int> take_contexts() {
  const Locked guard(lock());
  return std::exchange(contexts(), {});
}

bool take_device_bytes(size_t bytes) {
  if (memory().device_bytes + bytes > machine().device_bytes) return false;
  memory().device_bytes += bytes;
  return true;
}

void return_device_bytes(size_t bytes) {
  memory().device_bytes -= bytes;
}

bool is_page_locked(const void* start, size_t bytes) {
  const auto& blocks = memory().host;
  auto after = blocks.upper_bound(start);
  if (after == blocks.begin()) return false;
  const auto& [block, size] = *--after;
  return static_cast<const std::byte*>(start) + bytes <= static_cast<const std::byte*>(block) + size;
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
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureIsolation:
      return "cudaErrorStreamCaptureIsolation";
    case cudaErrorCapturedEvent:
      return "cudaErrorCapturedEvent";
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
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
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
                 .major = machine().compute_major,
                 .minor = 0,
                 .multiProcessorCount = 4,
                 .totalGlobalMem = machine().device_bytes,
                 .sharedMemPerBlockOptin = machine().shared_bytes};
  std::snprintf(properties->name, sizeof(properties->name), "emulated device %d", device);
  properties->uuid.bytes[15] = static_cast<char>(device);
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= machine().devices) return cudaErrorInvalidDevice;
  const Locked guard(lock());
  current_device = device;
  begin_context();
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Locked guard(lock());
  begin_context();
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
  if (breaks_capture()) return cudaErrorStreamCaptureUnsupported;
  for (EmulatedStream* stream : streams()) stream->run_to(stream->put);  // as the real one waits
  const auto found = memory().device.find(block);
  if (found == memory().device.end()) return cudaErrorInvalidValue;
  return_device_bytes(found->second);
  memory().device.erase(found);
  ++counted().device_frees;
  std::free(block);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  return allocate(out, bytes, false);
}

cudaError_t cudaFreeHost(void* block) {
  const Locked guard(lock());
  if (block == nullptr) return cudaSuccess;
  if (breaks_capture()) return cudaErrorStreamCaptureUnsupported;
  if (memory().host.erase(block) == 0) return cudaErrorInvalidValue;
  ++counted().host_frees;
  std::free(block);
  return cudaSuccess;
}
