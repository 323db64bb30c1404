// Memory for slabs between a page and a store: where fetched ones land before they are verified, and where
// transcoded ones wait to be put. Reused, because the first touch of fresh memory costs several times the
// copy; bounded, because a transfer that was given up keeps its buffer until the transport lets go.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/ops/page_copies.h"
#include "kvstore/service/in_flight.h"

namespace lowkey::kvstore {

struct TransferBuffer {
  explicit TransferBuffer(size_t bytes)
      : data(new std::byte[bytes], [](std::byte* bytes) { delete[] bytes; }), size(bytes) {}
  // Of a device's staging memory.
  explicit TransferBuffer(std::shared_ptr<kernels::Buffer> memory)
      : data(memory->data(), [memory](std::byte*) {}), size(memory->size()) {}
  std::unique_ptr<std::byte[], std::function<void(std::byte*)>> data;
  size_t size;
};

class TransferBuffers : public std::enable_shared_from_this<TransferBuffers> {
 public:
  // `in_flight`, which may be null, counts the buffers that are out; `on_return` runs after one has come
  // back, on whatever thread that was. `device`: buffers are its staging memory, as long as it has some.
  TransferBuffers(size_t standard_bytes, size_t max_buffers, std::shared_ptr<InFlight> in_flight,
                  std::function<void()> on_return = {}, kernels::PageCopies* device = nullptr)
      : standard_bytes_(standard_bytes),
        max_buffers_(max_buffers),
        in_flight_(std::move(in_flight)),
        on_return_(std::move(on_return)),
        device_(device) {}

  size_t standard_bytes() const { return standard_bytes_; }

  // At least `bytes`; nothing when max_buffers are out. Any thread, also for letting go.
  std::shared_ptr<TransferBuffer> take(size_t bytes) {
    std::unique_ptr<TransferBuffer> buffer;
    {
      std::lock_guard lock(mutex_);
      if (out_ >= max_buffers_) return nullptr;
      ++out_;
      if (!free_.empty()) {
        buffer = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (!buffer || buffer->size < bytes) buffer = make(std::max(bytes, standard_bytes_));
    if (in_flight_) in_flight_->change(static_cast<int64_t>(buffer->size));
    return std::shared_ptr<TransferBuffer>(
        buffer.release(),
        [self = shared_from_this()](TransferBuffer* returned) { self->put_back(returned); });
  }

 private:
  std::unique_ptr<TransferBuffer> make(size_t bytes) const {
    std::shared_ptr<kernels::Buffer> staging = device_ ? device_->staging(bytes) : nullptr;
    if (staging) return std::make_unique<TransferBuffer>(std::move(staging));
    return std::make_unique<TransferBuffer>(bytes);
  }

  void put_back(TransferBuffer* returned) {
    std::unique_ptr<TransferBuffer> owned(returned);
    if (in_flight_) in_flight_->change(-static_cast<int64_t>(owned->size));
    {
      std::lock_guard lock(mutex_);
      --out_;
      free_.push_back(std::move(owned));
    }
    if (on_return_) on_return_();
  }

  const size_t standard_bytes_;
  const size_t max_buffers_;
  const std::shared_ptr<InFlight> in_flight_;
  const std::function<void()> on_return_;
  kernels::PageCopies* const device_;
  std::mutex mutex_;
  size_t out_ = 0;
  std::vector<std::unique_ptr<TransferBuffer>> free_;
};

}  // namespace lowkey::kvstore
