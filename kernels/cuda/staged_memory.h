// StagedMemory of one device.
#pragma once

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops/staged_memory.h"

namespace lowkey::kernels::cuda {

class CudaStagedMemory final : public StagedMemory {
 public:
  // Errors: kResourceExhausted, kUnavailable.
  static Result<std::unique_ptr<StagedMemory>> create(int device, size_t bytes);

  std::span<std::byte> host() override { return {host_.data(), host_.size()}; }
  Status download(size_t bytes) override {
    return copy(host_.data(), device_.data(), bytes, cudaMemcpyDeviceToHost);
  }
  Status upload(size_t bytes) override {
    return copy(device_.data(), host_.data(), bytes, cudaMemcpyHostToDevice);
  }

 private:
  CudaStagedMemory(int index, Stream stream, DeviceBuffer device, PinnedBuffer host)
      : index_(index), stream_(std::move(stream)), device_(std::move(device)), host_(std::move(host)) {}
  Status copy(std::byte* to, const std::byte* from, size_t bytes, cudaMemcpyKind kind);

  const int index_;
  const Stream stream_;
  DeviceBuffer device_;
  PinnedBuffer host_;
};

}  // namespace lowkey::kernels::cuda
