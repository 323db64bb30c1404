// What may not be asked for while a stream is captured, and that the emulation says so as the runtime does.
#include <gtest/gtest.h>

#include <functional>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/stream.h"

namespace lowkey::kernels::cuda {
namespace {

class Capture : public ::testing::Test {
 protected:
  // What `call` says inside a capture, and how the capture ends.
  std::pair<cudaError_t, cudaError_t> captured(const std::function<cudaError_t()>& call) {
    LOWKEY_CUDA_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    const cudaError_t said = call();
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_.get(), &graph);
    const UniqueHandle<cudaGraph_t> owner(graph);
    EXPECT_EQ(graph != nullptr, ended == cudaSuccess);
    return {said, ended};
  }
  void expect_refused(const char* what, cudaError_t error, const std::function<cudaError_t()>& call) {
    EXPECT_EQ(captured(call), (std::pair{error, cudaErrorStreamCaptureInvalidated})) << what;
  }
  void expect_allowed(const char* what, const std::function<cudaError_t()>& call) {
    EXPECT_EQ(captured(call), (std::pair{cudaSuccess, cudaSuccess})) << what;
  }

  const Stream stream_ = Stream::create().value(), other_ = Stream::create().value();
  DeviceBuffer device_ = DeviceBuffer::create(64).value();
  PinnedBuffer pinned_ = PinnedBuffer::create(64).value();
};

TEST_F(Capture, RefusesWhatWaitsOrAllocates) {
  const Event event = Event::create().value();
  event.record(stream_.get());
  const auto refused = [&](const char* what, const std::function<cudaError_t()>& call) {
    expect_refused(what, cudaErrorStreamCaptureUnsupported, call);
  };
  refused("waiting for the stream", [&] { return cudaStreamSynchronize(stream_.get()); });
  refused("waiting for another stream", [&] { return cudaStreamSynchronize(other_.get()); });
  refused("waiting for an event", [&] { return cudaEventSynchronize(event.get()); });
  refused("asking an event", [&] { return cudaEventQuery(event.get()); });
  void* memory = nullptr;
  refused("allocating", [&] { return cudaMalloc(&memory, 64); });
  refused("allocating on the host", [&] { return cudaHostAlloc(&memory, 64, cudaHostAllocDefault); });
  void* const mine = DeviceBuffer::create(64).value().data();
  refused("freeing", [&] { return cudaFree(mine); });
  std::vector<std::byte> pageable(64);
  refused("uploading pageable memory", [&] {
    return cudaMemcpyAsync(device_.data(), pageable.data(), 64, cudaMemcpyHostToDevice, stream_.get());
  });
  refused("downloading to pageable memory", [&] {
    return cudaMemcpyAsync(pageable.data(), device_.data(), 64, cudaMemcpyDeviceToHost, stream_.get());
  });
  refused("uploading beyond page-locked memory", [&] {
    return cudaMemcpyAsync(device_.data(), pinned_.data() + 32, 64, cudaMemcpyHostToDevice, stream_.get());
  });
}

TEST_F(Capture, KeepsOtherStreamsOut) {
  const Event event = Event::create().value();
  event.record(other_.get());
  expect_refused("waiting for work that is not captured", cudaErrorStreamCaptureIsolation,
                 [&] { return cudaStreamWaitEvent(stream_.get(), event.get(), 0); });
  expect_refused("another stream that waits for what is captured", cudaErrorCapturedEvent, [&] {
    LOWKEY_CUDA_CHECK(cudaEventRecord(event.get(), stream_.get()));
    return cudaStreamWaitEvent(other_.get(), event.get(), 0);
  });
}

TEST_F(Capture, TakesCopiesOfPageLockedMemoryAndReadsThemAtTheLaunch) {
  expect_allowed("uploading page-locked memory", [&] {
    return cudaMemcpyAsync(device_.data(), pinned_.data(), 64, cudaMemcpyHostToDevice, stream_.get());
  });
  LOWKEY_CUDA_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
  LOWKEY_CUDA_CHECK(
      cudaMemcpyAsync(device_.data(), pinned_.data(), 1, cudaMemcpyHostToDevice, stream_.get()));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  LOWKEY_CUDA_CHECK(cudaStreamEndCapture(stream_.get(), &graph));
  const size_t before = emulation::allocated_bytes();
  LOWKEY_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  EXPECT_GT(emulation::allocated_bytes(), before);  // a graph takes memory of the device
  LOWKEY_CUDA_CHECK(cudaGraphDestroy(graph));
  for (const std::byte value : {std::byte{3}, std::byte{9}}) {
    pinned_.data()[0] = value;
    LOWKEY_CUDA_CHECK(cudaGraphLaunch(executable, stream_.get()));
    LOWKEY_CUDA_CHECK(cudaStreamSynchronize(stream_.get()));
    EXPECT_EQ(device_.data()[0], value);
  }
  LOWKEY_CUDA_CHECK(cudaGraphExecDestroy(executable));
  EXPECT_EQ(emulation::allocated_bytes(), before);
}

}  // namespace
}  // namespace lowkey::kernels::cuda
