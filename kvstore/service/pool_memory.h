// The memory of a store's pool: whether the host has it, and how much of it is really there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace lowkey::kvstore {

// kUsage, in one line, when `available` bytes cannot hold a pool of `wanted`.
Status check_memory(uint64_t wanted, uint64_t available);

// How many bytes of a pool are resident, as mincore() tells. Asking costs some 10 ms per GiB, so measure()
// looks at one GiB, the next one each time.
class PoolResidency {
 public:
  static constexpr size_t kWindowBytes = size_t{1} << 30;

  explicit PoolResidency(std::span<const std::byte> pool);
  void measure_all();
  uint64_t measure();  // resident bytes: one window measured now, the others when it was their turn

 private:
  const std::span<const std::byte> pool_;
  std::vector<uint64_t> windows_;  // resident bytes of each
  size_t next_ = 0;
};

}  // namespace lowkey::kvstore
