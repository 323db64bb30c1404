// Memory with an owner.
#pragma once

#include <cstddef>

namespace lowkey::kernels {

// Move-only: one owner.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::byte* data() = 0;
  virtual size_t size() const = 0;
};

}  // namespace lowkey::kernels
