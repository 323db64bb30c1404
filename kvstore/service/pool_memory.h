// The memory of a store's pool: whether the host has it, on which NUMA nodes it lies, and how much of it is
// really there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace lowkey::kvstore {

// kUsage, in one line, when `available` bytes cannot hold a pool of `wanted`.
Status check_memory(uint64_t wanted, uint64_t available);

// The NUMA nodes that this process may use memory of; empty where the system does not tell.
std::vector<int> usable_numa_nodes();

// Memory that this thread, and threads that it starts, touch for the first time while this lives is spread
// over those nodes in turn: a pool is read by workers of all of them, and none should have it all far away or
// fill up one node's memory. Nothing happens on one node, or where the process was started with a policy of
// its own.
class NumaInterleave {
 public:
  NumaInterleave();
  ~NumaInterleave();
  NumaInterleave(const NumaInterleave&) = delete;
  NumaInterleave& operator=(const NumaInterleave&) = delete;
  bool active() const { return active_; }

 private:
  bool active_ = false;
};

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
