// Who fetches next from one store. Restores go on batch by batch, the most urgent first (level 0 before upper
// levels, then in the order they came), so that the tail of a long one never holds up the beginning of
// another. A buffer is the right to have one batch on its way: their number bounds the bytes in flight.
// I/O thread; buffers may be let go on any thread.
#pragma once

#include <boost/asio/io_context.hpp>

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "kvstore/service/transfer_buffers.h"

namespace lowkey::kvstore {

class FetchQueue : public std::enable_shared_from_this<FetchQueue> {
 public:
  class Fetcher {
   public:
    virtual ~Fetcher() = default;
    // Bytes of its next batch, at most `most` unless one page is larger; 0: it has nothing more to fetch.
    virtual size_t next_batch(size_t most) = 0;
    virtual void fetch(std::shared_ptr<TransferBuffer> buffer) = 0;  // that batch; holds on to the buffer
  };

  static std::shared_ptr<FetchQueue> create(boost::asio::io_context& io, std::shared_ptr<InFlight> in_flight,
                                            kernels::PageCopies* device = nullptr);

  size_t batch_bytes() const { return buffers_->standard_bytes(); }

  // Stands in line until it has nothing more to fetch. Smaller `urgency` numbers go first.
  void enter(int urgency, std::shared_ptr<Fetcher> fetcher);

 private:
  explicit FetchQueue(boost::asio::io_context& io) : io_(io) {}
  void go_on();

  boost::asio::io_context& io_;
  std::shared_ptr<TransferBuffers> buffers_;
  uint64_t entered_ = 0;
  std::map<std::pair<int, uint64_t>, std::shared_ptr<Fetcher>> line_;
};

}  // namespace lowkey::kvstore
