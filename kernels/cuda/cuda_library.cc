// What liblowkey_cuda.so exports.
#include <spdlog/fmt/fmt.h>

#include "base/version.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/staged_memory.h"
#include "kernels/ops/device_library.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kOldestMajor = 8;  // compute capability: bf16 products and asynchronous copies

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string uuid_text(const cudaDeviceProp& properties) {
  std::string text;
  for (const char byte : properties.uuid.bytes)
    text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

class CudaLibrary final : public DeviceLibrary {
 public:
  Result<std::vector<DeviceInfo>> devices() override {
    int count = 0, driver = 0, runtime = 0;
    LOWKEY_CUDA_TRY(cudaGetDeviceCount(&count));
    LOWKEY_CUDA_TRY(cudaDriverGetVersion(&driver));
    LOWKEY_CUDA_TRY(cudaRuntimeGetVersion(&runtime));
    std::vector<DeviceInfo> devices;
    for (int i = 0; i < count; ++i) {
      cudaDeviceProp properties;
      LOWKEY_CUDA_TRY(cudaGetDeviceProperties(&properties, i));
      if (properties.major < kOldestMajor) continue;
      devices.push_back(
          {.index = i,
           .name = properties.name,
           .uuid = uuid_text(properties),
           .driver = fmt::format("CUDA driver {}, runtime {}", version_text(driver), version_text(runtime)),
           .total_bytes = properties.totalGlobalMem});
    }
    if (devices.empty())
      return Error{
          Code::kUnavailable,
          fmt::format("CUDA: {} device(s), none of compute capability {}.0 or later", count, kOldestMajor)};
    return devices;
  }

  Result<uint64_t> free_bytes(int index) override {
    LOWKEY_CUDA_TRY(cudaSetDevice(index));
    size_t free = 0, total = 0;
    LOWKEY_CUDA_TRY(cudaMemGetInfo(&free, &total));
    return free;
  }

  Result<std::unique_ptr<Backend>> make_backend(int index, DType dtype) override {
    return make_cuda_backend(index, dtype);
  }

  Result<std::unique_ptr<StagedMemory>> make_staged_memory(int index, size_t bytes) override {
    return CudaStagedMemory::create(index, bytes);
  }
};

}  // namespace
}  // namespace lowkey::kernels::cuda

extern "C" {

const char* lowkey_device_version() {
  static const std::string version =
      fmt::format("{}/{}", lowkey::kVersion, lowkey::kernels::kDeviceInterface);
  return version.c_str();
}

lowkey::kernels::DeviceLibrary* lowkey_device_library() {
  static lowkey::kernels::cuda::CudaLibrary library;
  return &library;
}
}
