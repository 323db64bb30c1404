// Memory of the device and page-locked memory of the host: owners.
#pragma once

#include <memory>
#include <span>

#include "kernels/cuda/cuda_error.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels::cuda {

class DevicePool;

// 256-byte aligned. Contents are undefined until written. Owns its memory: of the device itself, or a block
// of a pool (device_pool.h). A view of it is its address, data() or as<T>().
class DeviceBuffer final : public Buffer {
 public:
  // Error kResourceExhausted with the bytes asked for and those free.
  static Result<DeviceBuffer> create(size_t bytes);
  DeviceBuffer() = default;

  std::byte* data() override { return memory_.get(); }
  size_t size() const override { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  friend class DevicePool;
  struct Free {
    Free() noexcept {}
    Free(std::shared_ptr<DevicePool> pool_, size_t block_) : pool(std::move(pool_)), block(block_) {}
    std::shared_ptr<DevicePool> pool;  // null: of the device itself
    size_t block = 0;                  // its size there
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
};

class PinnedBuffer final : public Buffer {
 public:
  static Result<PinnedBuffer> create(size_t bytes);
  PinnedBuffer() = default;

  std::byte* data() override { return memory_.get(); }
  size_t size() const override { return size_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { (void)cudaFreeHost(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
};

// Memory for one call's intermediate results, on one stream: grows to what was asked for, never shrinks. A
// buffer that was outgrown lives until the stream has passed what used it.
class Scratch {
 public:
  explicit Scratch(std::shared_ptr<DevicePool> pool) : pool_(std::move(pool)) {}
  // At least `count` elements, valid until the next call of get(). Aborts when the device has no more memory.
  template <class T>
  T* get(size_t count) {
    return reinterpret_cast<T*>(bytes(count * sizeof(T)));
  }

 private:
  std::byte* bytes(size_t count);
  std::shared_ptr<DevicePool> pool_;
  DeviceBuffer buffer_;
};

}  // namespace lowkey::kernels::cuda
