#include "worker/engine/staging_pool.h"

namespace lowkey::worker {

std::shared_ptr<std::byte> StagingPool::acquire() {
  std::unique_ptr<kernels::Buffer> buffer;
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      buffer = std::move(idle_.back());
      idle_.pop_back();
    } else if (unmade_ > 0) {
      buffer = make_(buffer_bytes_);
      unmade_ = buffer ? unmade_ - 1 : 0;
    }
  }
  if (!buffer) return nullptr;
  std::byte* const data = buffer->data();
  std::shared_ptr<kernels::Buffer> owner(buffer.release(),
                                         [pool = shared_from_this()](kernels::Buffer* back) {
                                           std::lock_guard lock(pool->mutex_);
                                           pool->idle_.emplace_back(back);
                                         });
  return {std::move(owner), data};
}

size_t StagingPool::available() const {
  std::lock_guard lock(mutex_);
  return unmade_ + idle_.size();
}

}  // namespace lowkey::worker
