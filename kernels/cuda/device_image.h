// Arrays that go to the device in one copy: laid out on the host, with pointers between them that become
// addresses when it is known where they will be.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "kernels/cuda/device_memory.h"

namespace lowkey::kernels::cuda {

class DeviceImage {
 public:
  static constexpr size_t kAlignment = 64;

  void clear() {
    bytes_.clear();
    pointers_.clear();
  }
  // Offset of `count` zeroed elements.
  template <class T>
  size_t reserve(size_t count) {
    const size_t at = (bytes_.size() + kAlignment - 1) / kAlignment * kAlignment;
    bytes_.resize(at + count * sizeof(T));
    return at;
  }
  template <class T>
  size_t add(std::span<const T> values) {
    const size_t at = reserve<T>(values.size());
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size_bytes());
    return at;
  }
  template <class T>
  size_t add(const std::vector<T>& values) {
    return add(std::span<const T>(values));
  }
  // The field at `field` will point to the array at `target`.
  void point(size_t field, size_t target) {
    std::memcpy(bytes_.data() + field, &target, sizeof(target));
    pointers_.push_back(field);
  }

  // All bytes, as they are when the image lies at `base`.
  void write(std::byte* to, std::byte* base) const {
    std::memcpy(to, bytes_.data(), bytes_.size());
    for (const size_t field : pointers_) {
      size_t target;
      std::memcpy(&target, bytes_.data() + field, sizeof(target));
      const std::byte* address = base + target;
      std::memcpy(to + field, &address, sizeof(address));
    }
  }

  size_t size() const { return bytes_.size(); }
  bool operator==(const DeviceImage&) const = default;

 private:
  std::vector<std::byte> bytes_;
  std::vector<size_t> pointers_;
};

}  // namespace lowkey::kernels::cuda
