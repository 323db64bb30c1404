#include "kernels/cuda/staged_memory.h"

#include <spdlog/fmt/fmt.h>

namespace lowkey::kernels::cuda {

Result<std::unique_ptr<StagedMemory>> CudaStagedMemory::create(int device, size_t bytes) {
  LOWKEY_CUDA_TRY(cudaSetDevice(device));
  LOWKEY_ASSIGN(stream, Stream::create());
  LOWKEY_ASSIGN(memory, DeviceBuffer::create(bytes));
  LOWKEY_ASSIGN(host, PinnedBuffer::create(bytes));
  LOWKEY_CUDA_TRY(cudaMemsetAsync(memory.data(), 0, bytes, stream.get()));
  LOWKEY_TRY(stream.synchronize());
  return std::unique_ptr<StagedMemory>(
      new CudaStagedMemory(device, std::move(stream), std::move(memory), std::move(host)));
}

Status CudaStagedMemory::copy(std::byte* to, const std::byte* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes > host_.size())
    return Error{Code::kInvalidArgument, fmt::format("a copy of {} of {} bytes", bytes, host_.size())};
  LOWKEY_CUDA_TRY(cudaSetDevice(index_));
  LOWKEY_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, kind, stream_.get()));
  return stream_.synchronize();
}

}  // namespace lowkey::kernels::cuda
