// What a machine without a usable device is told, what happens when memory is short, and what may be
// captured.
#include <gtest/gtest.h>

#include <span>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/page_copies.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops/device_library.h"

extern "C" lowkey::kernels::DeviceLibrary* lowkey_device_library();

namespace lowkey::kernels::cuda {
namespace {

// Restores what the emulation says of its machine.
struct OnMachine {
  explicit OnMachine(const emulation::Machine& machine) { emulation::machine() = machine; }
  ~OnMachine() { emulation::machine() = {}; }
};

TEST(CudaErrors, SayWhatIsMissingInOneLine) {
  int count = 0;
  {
    const OnMachine machine({.devices = 0, .driver = 0});
    const Status status = LOWKEY_CUDA_STATUS(cudaGetDeviceCount(&count));
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, Code::kUnavailable);
    EXPECT_EQ(status.error().message, "CUDA: no driver is installed");
  }
  {
    const OnMachine machine({.driver = 12040});
    const Status status = LOWKEY_CUDA_STATUS(cudaGetDeviceCount(&count));
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().message, "CUDA: driver for 12.4: expected 13.0 or later");
  }
  {
    const OnMachine machine({.devices = 0});
    const Status status = LOWKEY_CUDA_STATUS(cudaGetDeviceCount(&count));
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().message, "CUDA: no device: the driver sees none");
  }
  const auto backend = make_cuda_backend(3, DType::kBf16);
  ASSERT_FALSE(backend.ok());
  EXPECT_NE(backend.error().message.find("cudaErrorInvalidDevice"), std::string::npos)
      << backend.error().message;
  EXPECT_NE(backend.error().message.find("cuda_backend.cc:"), std::string::npos) << backend.error().message;
}

TEST(CudaLibrary, StagesMemoryBesideABackend) {
  const auto staged = lowkey_device_library()->make_staged_memory(0, 1000);
  ASSERT_TRUE(staged.ok()) << staged.error().message;
  const std::span<std::byte> host = (*staged)->host();
  ASSERT_EQ(host.size(), 1000u);
  for (size_t i = 0; i < host.size(); ++i) host[i] = std::byte(i % 251);
  ASSERT_TRUE((*staged)->upload(1000).ok());
  std::ranges::fill(host, std::byte{255});
  ASSERT_TRUE((*staged)->download(600).ok());
  for (size_t i = 0; i < host.size(); ++i)
    ASSERT_EQ(host[i], i < 600 ? std::byte(i % 251) : std::byte{255}) << i;
  EXPECT_FALSE((*staged)->upload(1001).ok());
  EXPECT_FALSE(lowkey_device_library()->make_staged_memory(1, 1000).ok());
}

// A context takes hundreds of megabytes of a device that somebody else may need.
TEST(CudaLibrary, LooksAtDevicesWithoutUsingThem) {
  const OnMachine machine({.devices = 3});
  (void)emulation::take_contexts();
  const auto devices = lowkey_device_library()->devices();
  ASSERT_TRUE(devices.ok()) << devices.error().message;
  ASSERT_EQ(devices->size(), 3u);
  EXPECT_NE(devices->at(1).uuid, devices->at(2).uuid);
  EXPECT_EQ(devices->at(1).total_bytes, size_t{1} << 30);
  EXPECT_TRUE(emulation::take_contexts().empty());
  EXPECT_TRUE(lowkey_device_library()->free_bytes(2).ok());
  EXPECT_EQ(emulation::take_contexts(), std::set<int>{2});
  (void)lowkey_device_library()->make_backend(1, DType::kBf16).value();
  EXPECT_EQ(emulation::take_contexts(), std::set<int>{1});
  LOWKEY_CUDA_CHECK(cudaSetDevice(0));
}

TEST(CudaLibrary, SaysWhyThereIsNoDevice) {
  const auto reason = [](const emulation::Machine& what) {
    const OnMachine machine(what);
    const auto devices = lowkey_device_library()->devices();
    return devices.ok() ? "" : devices.error().message;
  };
  EXPECT_EQ(reason({.devices = 0, .driver = 0}), "CUDA: no driver is installed");
  EXPECT_EQ(reason({.devices = 0}), "CUDA: no device: the driver sees none");
  EXPECT_EQ(reason({.driver = 12040}), "CUDA: driver for 12.4: expected 13.0 or later");
  EXPECT_EQ(reason({.compute_major = 7}), "CUDA: 1 device(s), none of compute capability 8.0 or later");
}

TEST(CudaErrors, ExhaustedMemoryIsAValueWithTheBytes) {
  const OnMachine machine({.device_bytes = size_t{3} << 30});
  auto some = DeviceBuffer::create(size_t{1} << 20);
  ASSERT_TRUE(some.ok());
  const size_t before = emulation::allocated_bytes();
  const auto buffer = DeviceBuffer::create(size_t{4} << 30);
  ASSERT_FALSE(buffer.ok());
  EXPECT_EQ(buffer.error().code, Code::kResourceExhausted);
  EXPECT_NE(buffer.error().message.find("4.000 GiB asked for"), std::string::npos) << buffer.error().message;
  EXPECT_NE(buffer.error().message.find("of 3.000 GiB free"), std::string::npos) << buffer.error().message;
  EXPECT_EQ(emulation::allocated_bytes(), before);
}

TEST(CudaMemory, IsGivenBack) {
  const size_t before = emulation::allocated_bytes();
  {
    const auto backend = make_cuda_backend(0, DType::kF32).value();
    const auto buffer = backend->allocate(1 << 20);
    EXPECT_GE(emulation::allocated_bytes(), before + (1 << 20));
  }
  EXPECT_EQ(emulation::allocated_bytes(), before);
}

// A captured sequence of operations sees what its inputs hold when it is launched.
TEST(CudaGraphs, ReplayOperationsOnNewInputs) {
  const auto backend = make_cuda_backend(0, DType::kF32).value();
  const auto stream = static_cast<cudaStream_t>(backend->native_stream());
  const auto x = backend->allocate(64 * sizeof(float)), y = backend->allocate(64 * sizeof(float));
  const Tensor tx{x->data(), 2, 32}, ty{y->data(), 2, 32};
  const std::vector<int32_t> rows = {1, 0};
  const auto work = [&] {
    backend->gather_rows(tx, rows, ty);
    backend->add(tx, ty);
  };
  work();  // the rows are on the device
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  LOWKEY_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work();
  LOWKEY_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  LOWKEY_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  LOWKEY_CUDA_CHECK(cudaGraphDestroy(graph));
  const UniqueHandle<cudaGraphExec_t> owner(executable);
  for (int round = 1; round < 4; ++round) {
    std::vector<float> values(64), found(64);
    for (int i = 0; i < 64; ++i) values[i] = static_cast<float>(round * 100 + i);
    backend->upload(std::as_bytes(std::span(values)), x->data());
    LOWKEY_CUDA_CHECK(cudaGraphLaunch(owner.get(), stream));
    backend->download(y->data(), std::as_writable_bytes(std::span(found)));
    for (int i = 0; i < 64; ++i) EXPECT_EQ(found[i], values[i] + values[(i + 32) % 64]);
  }
}

}  // namespace
}  // namespace lowkey::kernels::cuda
