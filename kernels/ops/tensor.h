// Non-owning view of a row-major matrix in a backend's memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

struct Tensor {
  void* data = nullptr;
  int rows = 0;
  int cols = 0;
  DType dtype = DType::kF32;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  size_t bytes() const { return static_cast<size_t>(rows) * cols * dtype_bytes(dtype); }
};

}  // namespace lowkey::kernels
