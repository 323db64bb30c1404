// Streams and events: owners are move-only; a raw cudaStream_t or cudaEvent_t is the view.
#pragma once

#include <memory>
#include <type_traits>

#include "kernels/cuda/cuda_error.h"

namespace lowkey::kernels::cuda {

// What frees a handle must not throw and has nobody to tell: a lost device is reported by the next call.
struct HandleDeleter {
  void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
  void operator()(cudaGraph_t graph) const { (void)cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const { (void)cudaGraphExecDestroy(graph); }
};
template <class Handle>
using UniqueHandle = std::unique_ptr<std::remove_pointer_t<Handle>, HandleDeleter>;

class Stream {
 public:
  static Result<Stream> create() {
    cudaStream_t stream = nullptr;
    LOWKEY_CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return Stream(stream);
  }
  // Blocks of its kernels go ahead of those of other streams that wait for a multiprocessor.
  static Result<Stream> create_urgent() {
    int least = 0, greatest = 0;
    LOWKEY_CUDA_TRY(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    cudaStream_t stream = nullptr;
    LOWKEY_CUDA_TRY(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest));
    return Stream(stream);
  }
  cudaStream_t get() const { return handle_.get(); }
  Status synchronize() const { return LOWKEY_CUDA_STATUS(cudaStreamSynchronize(get())); }
  // What is put on this stream from now on waits for `event` as it was last recorded.
  void wait(cudaEvent_t event) const { LOWKEY_CUDA_CHECK(cudaStreamWaitEvent(get(), event, 0)); }

 private:
  explicit Stream(cudaStream_t stream) : handle_(stream) {}
  UniqueHandle<cudaStream_t> handle_;
};

class Event {
 public:
  static Result<Event> create(unsigned flags = cudaEventDisableTiming) {
    cudaEvent_t event = nullptr;
    LOWKEY_CUDA_TRY(cudaEventCreateWithFlags(&event, flags));
    return Event(event);
  }
  cudaEvent_t get() const { return handle_.get(); }
  void record(cudaStream_t stream) const { LOWKEY_CUDA_CHECK(cudaEventRecord(get(), stream)); }
  Status synchronize() const { return LOWKEY_CUDA_STATUS(cudaEventSynchronize(get())); }

 private:
  explicit Event(cudaEvent_t event) : handle_(event) {}
  UniqueHandle<cudaEvent_t> handle_;
};

}  // namespace lowkey::kernels::cuda
