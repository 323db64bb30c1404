// Memory that is grown, never shrunk.
#pragma once

#include <cstddef>
#include <vector>

namespace lowkey::kernels {

template <class T>
void grow(std::vector<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
}

inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

}  // namespace lowkey::kernels
