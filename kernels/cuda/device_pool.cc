#include "kernels/cuda/device_pool.h"

#include <algorithm>
#include <bit>

namespace lowkey::kernels::cuda {
namespace {

constexpr size_t kSmallestBlock = 256;
// Larger blocks (weights, page memory, a long prompt's activations) go back to the device at once, exact.
constexpr size_t kLargestKept = size_t{64} << 20;
constexpr size_t kMostIdleBytes = size_t{256} << 20;

}  // namespace

size_t DevicePool::block_bytes(size_t bytes) {
  if (bytes > kLargestKept) return bytes;
  const size_t step = std::max(kSmallestBlock, std::bit_floor(std::max<size_t>(bytes, 1)) / 8);
  return std::max<size_t>(1, (bytes + step - 1) / step) * step;
}

Result<DeviceBuffer> DevicePool::allocate(size_t bytes) {
  const size_t block = block_bytes(bytes);
  std::byte* memory = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto found = idle_.find(block);
    if (found != idle_.end()) {
      memory = found->second.back();
      found->second.pop_back();
      if (found->second.empty()) idle_.erase(found);
      idle_bytes_ -= block;
    }
  }
  DeviceBuffer buffer;
  if (memory == nullptr) {
    auto fresh = DeviceBuffer::create(block);
    if (!fresh.ok() && idle_bytes() > 0) {
      trim();
      fresh = DeviceBuffer::create(block);
    }
    if (!fresh.ok()) return fresh.error();
    memory = fresh.value().memory_.release();
  }
  buffer.memory_ = {memory, {shared_from_this(), block}};
  buffer.size_ = bytes;
  return buffer;
}

void DevicePool::give_back(std::byte* block, size_t bytes) {
  ++generation_;
  {
    const std::lock_guard lock(mutex_);
    if (bytes <= kLargestKept && idle_bytes_ + bytes <= kMostIdleBytes) {
      idle_[bytes].push_back(block);
      idle_bytes_ += bytes;
      return;
    }
  }
  (void)cudaFree(block);
}

size_t DevicePool::idle_bytes() const {
  const std::lock_guard lock(mutex_);
  return idle_bytes_;
}

void DevicePool::trim() {
  std::map<size_t, std::vector<std::byte*>> idle;
  {
    const std::lock_guard lock(mutex_);
    idle.swap(idle_);
    idle_bytes_ = 0;
  }
  for (const auto& [bytes, blocks] : idle)
    for (std::byte* block : blocks) (void)cudaFree(block);
}

}  // namespace lowkey::kernels::cuda
