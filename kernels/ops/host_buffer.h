// Host memory of a backend: 64-byte aligned, zeroed.
#pragma once

#include <cstdlib>
#include <memory>

#include "kernels/ops/buffer.h"

namespace lowkey::kernels {

class HostBuffer final : public Buffer {
 public:
  explicit HostBuffer(size_t bytes);

  std::byte* data() override { return data_.get(); }
  size_t size() const override { return size_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  size_t size_;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace lowkey::kernels
