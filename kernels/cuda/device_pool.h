// Device memory that is kept for whoever asks next: cudaMalloc and cudaFree wait for the whole device, and
// what grows (scratch memory, activations) would leave holes. Buffers own their block and give it back; they
// may outlive everybody else who knows the pool.
//
// A block given back may have a new owner at once, while what its last one put on the backend's stream still
// uses it: all use it on that stream alone, in order. Any thread.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/cuda/device_memory.h"

namespace lowkey::kernels::cuda {

class DevicePool : public std::enable_shared_from_this<DevicePool> {
 public:
  static std::shared_ptr<DevicePool> create() { return std::shared_ptr<DevicePool>(new DevicePool); }
  ~DevicePool() { trim(); }
  DevicePool(const DevicePool&) = delete;
  DevicePool& operator=(const DevicePool&) = delete;

  // At least 256-byte aligned; contents are undefined. Error kResourceExhausted, after idle blocks were
  // freed.
  Result<DeviceBuffer> allocate(size_t bytes);

  // Rises whenever memory is given back: as long as it stays, every address that was somebody's still is.
  uint64_t generation() const { return generation_; }
  size_t idle_bytes() const;
  void trim();  // frees what nobody has

  // Of a block for so many bytes: rounded up by less than an eighth, so that blocks fit more than one wish.
  static size_t block_bytes(size_t bytes);

 private:
  friend class DeviceBuffer;
  DevicePool() = default;
  void give_back(std::byte* block, size_t bytes);

  mutable std::mutex mutex_;
  std::map<size_t, std::vector<std::byte*>> idle_;  // by their size
  size_t idle_bytes_ = 0;
  std::atomic<uint64_t> generation_ = 0;
};

}  // namespace lowkey::kernels::cuda
