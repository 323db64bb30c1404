// Streams, events and graphs of the emulated runtime.
#include <chrono>
#include <cstring>

#include "kernels/cuda/emulation/state.h"

namespace lowkey::kernels::cuda::emulation {
namespace {

// Of the device, for each node of a graph that can be launched.
constexpr size_t kNodeBytes = 1024;

thread_local EmulatedStream* capturing = nullptr;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

cudaError_t refused(EmulatedStream* stream, cudaError_t error) {
  stream->capture_lost = true;
  return error;
}

}  // namespace

std::set<EmulatedStream*>& streams() {
  static std::set<EmulatedStream*> instance;
  return instance;
}

bool breaks_capture() {
  if (capturing == nullptr) return false;
  capturing->capture_lost = true;
  return true;
}

void enqueue(cudaStream_t stream, EmulatedWork work) {
  const Locked guard(lock());
  ++counted().launches;
  if (stream->capture != nullptr) {
    stream->capture->work.push_back(std::move(work));
    return;
  }
  stream->work.push_back(std::move(work));
  ++stream->put;
}

}  // namespace lowkey::kernels::cuda::emulation

using namespace lowkey::kernels::cuda::emulation;

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const Locked guard(lock());
  const void* host = kind == cudaMemcpyHostToDevice ? from : kind == cudaMemcpyDeviceToHost ? to : nullptr;
  if (stream->capture != nullptr && host != nullptr && !is_page_locked(host, bytes))
    return refused(stream, cudaErrorStreamCaptureUnsupported);
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
  begin_context();
  *stream = new EmulatedStream;
  streams().insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Locked guard(lock());
  const cudaError_t status = cudaStreamSynchronize(stream);
  if (capturing == stream) capturing = nullptr;
  streams().erase(stream);
  delete stream;
  return status;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Locked guard(lock());
  ++counted().synchronizations;
  if (stream->capture != nullptr) return refused(stream, cudaErrorStreamCaptureUnsupported);
  if (breaks_capture()) return cudaErrorStreamCaptureUnsupported;
  stream->run_to(stream->put);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Locked guard(lock());
  if (event->stream == nullptr || event->stream == stream) return cudaSuccess;
  if (event->captured) return refused(event->stream, cudaErrorCapturedEvent);
  if (stream->capture != nullptr) return refused(stream, cudaErrorStreamCaptureIsolation);
  enqueue(stream, [from = event->stream, position = event->position] { from->run_to(position); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Locked guard(lock());
  event->stream = stream;
  event->captured = stream->capture != nullptr;
  if (event->captured) return cudaSuccess;  // an order inside the capture, and nothing to wait for
  enqueue(stream, [seconds = event->seconds] { *seconds = now(); });
  event->position = stream->put;
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  const Locked guard(lock());
  if (flags != cudaEventRecordExternal) return cudaEventRecord(event, stream);
  if (stream->capture == nullptr) return cudaErrorInvalidValue;
  enqueue(stream, [seconds = event->seconds] { *seconds = now(); });
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Locked guard(lock());
  ++counted().synchronizations;
  if (breaks_capture()) return cudaErrorStreamCaptureUnsupported;
  if (event->captured) return cudaErrorCapturedEvent;
  if (event->stream != nullptr) event->stream->run_to(event->position);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Locked guard(lock());
  if (breaks_capture()) return cudaErrorStreamCaptureUnsupported;
  if (event->captured) return cudaErrorCapturedEvent;
  return event->stream == nullptr || event->stream->done >= event->position ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = static_cast<float>((*end->seconds - *begin->seconds) * 1e3);
  return cudaEventQuery(end);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Locked guard(lock());
  if (stream->capture != nullptr || capturing != nullptr) return cudaErrorInvalidValue;
  stream->capture = std::make_unique<EmulatedGraph>();
  stream->capture_lost = false;
  capturing = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Locked guard(lock());
  *graph = nullptr;
  if (stream->capture == nullptr || capturing != stream) return cudaErrorInvalidValue;
  capturing = nullptr;
  std::unique_ptr<EmulatedGraph> captured = std::move(stream->capture);
  if (stream->capture_lost) return cudaErrorStreamCaptureInvalidated;
  *graph = captured.release();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  const Locked guard(lock());
  const size_t bytes = graph->work.size() * kNodeBytes;
  if (!take_device_bytes(bytes)) return cudaErrorMemoryAllocation;
  *executable = new EmulatedExecutable{std::make_shared<const std::vector<EmulatedWork>>(graph->work), bytes};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Locked guard(lock());
  ++counted().graph_launches;
  --counted().launches;  // enqueue() counts one
  enqueue(stream, [work = executable->work] {
    for (const EmulatedWork& each : *work) each();
  });
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Locked guard(lock());
  return_device_bytes(executable->bytes);
  delete executable;
  return cudaSuccess;
}
