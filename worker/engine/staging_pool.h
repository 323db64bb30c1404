// Buffers for copies of pages on their way to a store: a fixed number of equal ones, reused (fresh memory
// would cost page faults at 8x the copy), made when first needed. Thread-safe: buffers come back from the I/O
// thread.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/ops/buffer.h"

namespace lowkey::worker {

class StagingPool : public std::enable_shared_from_this<StagingPool> {
 public:
  using Make = std::function<std::unique_ptr<kernels::Buffer>(size_t bytes)>;  // null: there is no more

  static std::shared_ptr<StagingPool> create(size_t buffer_bytes, size_t budget_bytes, Make make) {
    return std::shared_ptr<StagingPool>(
        new StagingPool(buffer_bytes, budget_bytes / buffer_bytes, std::move(make)));
  }

  // Null when all are out. The buffer returns with its last owner, and keeps the pool alive until then.
  std::shared_ptr<std::byte> acquire();
  size_t available() const;

 private:
  StagingPool(size_t buffer_bytes, size_t buffers, Make make)
      : buffer_bytes_(buffer_bytes), make_(std::move(make)), unmade_(buffers) {}

  const size_t buffer_bytes_;
  const Make make_;
  mutable std::mutex mutex_;
  size_t unmade_;
  std::vector<std::unique_ptr<kernels::Buffer>> idle_;
};

}  // namespace lowkey::worker
