// Memory that is grown, never shrunk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lowkey::kernels {

template <class T>
void grow(std::vector<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
}

// The same, from a whole cache line on.
template <class T>
T* grow_aligned(std::vector<T>& buffer, size_t size) {
  constexpr uintptr_t kLine = 64;
  grow(buffer, size + kLine / sizeof(T));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(buffer.data());
  return reinterpret_cast<T*>((begin + kLine - 1) / kLine * kLine);
}

inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

}  // namespace lowkey::kernels
