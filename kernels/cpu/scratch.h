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

// The same, from a whole cache line on: vectors that straddle two lines cost two accesses, and what was just
// stored so is slow to read.
inline constexpr uintptr_t kCacheLine = 64;
template <class T>
T* aligned_begin(std::vector<T>& grown) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(grown.data());
  return reinterpret_cast<T*>((begin + kCacheLine - 1) / kCacheLine * kCacheLine);
}
template <class T>
T* grow_aligned(std::vector<T>& buffer, size_t size) {
  grow(buffer, size + kCacheLine / sizeof(T));
  return aligned_begin(buffer);
}

inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

}  // namespace lowkey::kernels
