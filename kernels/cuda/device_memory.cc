#include "kernels/cuda/device_memory.h"

#include <spdlog/fmt/fmt.h>

#include "base/check.h"
#include "kernels/cuda/device_pool.h"

namespace lowkey::kernels::cuda {

Result<DeviceBuffer> DeviceBuffer::create(size_t bytes) {
  void* memory = nullptr;
  if (const Status status = LOWKEY_CUDA_STATUS(cudaMalloc(&memory, bytes == 0 ? 1 : bytes)); !status.ok()) {
    Error error = status.error();
    if (error.code == Code::kResourceExhausted)
      error.message = fmt::format("CUDA: device memory: {}", memory_report(bytes));
    return error;
  }
  DeviceBuffer buffer;
  buffer.memory_.reset(static_cast<std::byte*>(memory));
  buffer.size_ = bytes;
  return buffer;
}

Result<PinnedBuffer> PinnedBuffer::create(size_t bytes) {
  void* memory = nullptr;
  if (const Status status =
          LOWKEY_CUDA_STATUS(cudaHostAlloc(&memory, bytes == 0 ? 1 : bytes, cudaHostAllocDefault));
      !status.ok()) {
    Error error = status.error();
    if (error.code == Code::kResourceExhausted)
      error.message = fmt::format("CUDA: page-locked host memory: {} bytes asked for, none left", bytes);
    return error;
  }
  PinnedBuffer buffer;
  buffer.memory_.reset(static_cast<std::byte*>(memory));
  buffer.size_ = bytes;
  return buffer;
}

void DeviceBuffer::Free::operator()(std::byte* memory) const {
  if (pool == nullptr) {
    (void)cudaFree(memory);
  } else {
    pool->give_back(memory, block);
  }
}

std::byte* Scratch::bytes(size_t count) {
  if (count > buffer_.size() || buffer_.data() == nullptr) {
    auto larger = pool_->allocate(count + count / 2);
    if (!larger.ok()) larger = pool_->allocate(count);
    LOWKEY_CHECK(larger.ok(), "{}", larger.error().message);
    buffer_ = std::move(larger).value();
  }
  return buffer_.data();
}

}  // namespace lowkey::kernels::cuda
