// Landing places of fetched slabs before they are verified. Reused, because the first touch of fresh memory
// costs several times the copy; bounded, because a transfer that was given up keeps its buffer until the
// transport lets go.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace lowkey::kvstore {

struct BounceBuffer {
  explicit BounceBuffer(size_t bytes)
      : data(std::make_unique_for_overwrite<std::byte[]>(bytes)), size(bytes) {}
  std::unique_ptr<std::byte[]> data;
  size_t size;
};

class BounceBuffers : public std::enable_shared_from_this<BounceBuffers> {
 public:
  BounceBuffers(size_t standard_bytes, size_t max_buffers)
      : standard_bytes_(standard_bytes), max_buffers_(max_buffers) {}

  size_t standard_bytes() const { return standard_bytes_; }

  // At least `bytes`; nothing when max_buffers are out. Any thread, also for letting go.
  std::shared_ptr<BounceBuffer> take(size_t bytes) {
    std::unique_ptr<BounceBuffer> buffer;
    {
      std::lock_guard lock(mutex_);
      if (out_ >= max_buffers_) return nullptr;
      ++out_;
      if (!free_.empty()) {
        buffer = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (!buffer || buffer->size < bytes)
      buffer = std::make_unique<BounceBuffer>(std::max(bytes, standard_bytes_));
    return std::shared_ptr<BounceBuffer>(buffer.release(),
                                         [self = shared_from_this()](BounceBuffer* returned) {
                                           std::unique_ptr<BounceBuffer> owned(returned);
                                           std::lock_guard lock(self->mutex_);
                                           --self->out_;
                                           self->free_.push_back(std::move(owned));
                                         });
  }

 private:
  const size_t standard_bytes_;
  const size_t max_buffers_;
  std::mutex mutex_;
  size_t out_ = 0;
  std::vector<std::unique_ptr<BounceBuffer>> free_;
};

}  // namespace lowkey::kvstore
