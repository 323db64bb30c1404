// A bound on what is in flight: bytes and batches. A token holds its share until the last user lets go, which
// for an abandoned transfer is after its outcome was reported.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "kvstore/service/in_flight.h"

namespace lowkey::kvstore {

class TransferBudget : public std::enable_shared_from_this<TransferBudget> {
 public:
  TransferBudget(uint64_t max_bytes, uint32_t max_batches, std::shared_ptr<InFlight> in_flight)
      : max_bytes_(max_bytes), max_batches_(max_batches), in_flight_(std::move(in_flight)) {}

  // Nothing when either bound would be passed. I/O thread; the token may be dropped on any thread.
  std::shared_ptr<void> take(uint64_t bytes) {
    if (batches_ >= max_batches_ || bytes > max_bytes_ - bytes_) return nullptr;
    bytes_ += bytes;
    ++batches_;
    in_flight_->change(static_cast<int64_t>(bytes));
    return std::shared_ptr<void>(this, [self = shared_from_this(), bytes](void*) {
      self->in_flight_->change(-static_cast<int64_t>(bytes));
      self->bytes_ -= bytes;
      --self->batches_;
    });
  }

 private:
  const uint64_t max_bytes_;
  const uint32_t max_batches_;
  const std::shared_ptr<InFlight> in_flight_;
  std::atomic<uint64_t> bytes_ = 0;
  std::atomic<uint32_t> batches_ = 0;
};

}  // namespace lowkey::kvstore
