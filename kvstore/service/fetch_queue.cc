#include "kvstore/service/fetch_queue.h"

#include <boost/asio/post.hpp>

namespace lowkey::kvstore {

namespace {

// A batch is the grain of urgency: at 1 Gbit/s the buffers of a store are drained in 70 ms. Two keep the wire
// and the byte thread busy; the others bridge the I/O thread's own delays.
constexpr size_t kBatchBytes = 2ull << 20;
constexpr size_t kBatches = 4;

}  // namespace

std::shared_ptr<FetchQueue> FetchQueue::create(boost::asio::io_context& io,
                                               std::shared_ptr<InFlight> in_flight,
                                               kernels::PageCopies* device) {
  std::shared_ptr<FetchQueue> queue(new FetchQueue(io));
  // Posted on: whoever lets a buffer go is not to find itself fetching, and may be another thread.
  const auto on_return = [weak = std::weak_ptr(queue), &io] {
    if (weak.expired()) return;  // and perhaps `io` with it
    boost::asio::post(io, [weak] {
      if (const auto self = weak.lock()) self->go_on();
    });
  };
  queue->buffers_ =
      std::make_shared<TransferBuffers>(kBatchBytes, kBatches, std::move(in_flight), on_return, device);
  return queue;
}

void FetchQueue::enter(int urgency, std::shared_ptr<Fetcher> fetcher) {
  line_.emplace(std::pair(urgency, entered_++), std::move(fetcher));
  go_on();
}

void FetchQueue::go_on() {
  while (!line_.empty()) {
    const auto first = line_.begin();
    const auto fetcher = first->second;
    const size_t bytes = fetcher->next_batch(kBatchBytes);
    if (bytes == 0) {
      line_.erase(first);
      continue;
    }
    auto buffer = buffers_->take(bytes);
    if (!buffer) return;  // again when one comes back
    fetcher->fetch(std::move(buffer));
  }
}

}  // namespace lowkey::kvstore
