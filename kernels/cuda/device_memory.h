// Memory of the device and page-locked memory of the host: owners.
#pragma once

#include <memory>
#include <span>

#include "kernels/cuda/cuda_error.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels::cuda {

// 256-byte aligned. Contents are undefined until written.
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
  struct Free {
    void operator()(std::byte* memory) const { (void)cudaFree(memory); }
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
  // At least `count` elements, valid until the next call of get(). Aborts when the device has no more memory.
  template <class T>
  T* get(size_t count) {
    return reinterpret_cast<T*>(bytes(count * sizeof(T)));
  }

 private:
  std::byte* bytes(size_t count);
  DeviceBuffer buffer_;
};

}  // namespace lowkey::kernels::cuda
