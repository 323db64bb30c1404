#include "worker/engine/staging_pool.h"

namespace lowkey::worker {

std::shared_ptr<std::byte> StagingPool::acquire() {
  std::unique_ptr<std::byte[]> buffer;
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      buffer = std::move(idle_.back());
      idle_.pop_back();
    } else if (unmade_ > 0) {
      --unmade_;
      buffer = std::make_unique<std::byte[]>(buffer_bytes_);
    } else {
      return nullptr;
    }
  }
  return std::shared_ptr<std::byte>(buffer.release(), [pool = shared_from_this()](std::byte* returned) {
    std::lock_guard lock(pool->mutex_);
    pool->idle_.emplace_back(returned);
  });
}

size_t StagingPool::available() const {
  std::lock_guard lock(mutex_);
  return unmade_ + idle_.size();
}

}  // namespace lowkey::worker
