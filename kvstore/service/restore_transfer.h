// One restore from one store: lookup with leases -> batches of gets into bounce buffers -> verify and copy
// into place -> release. Ends at the first page that is missing, wrong or late. Reports exactly once, and
// never while the verifier may still write to a target. I/O thread.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "kvstore/service/bounce_buffers.h"
#include "kvstore/service/page_verifier.h"
#include "kvstore/service/store_link.h"

namespace lowkey::wire {
class LookupReply;
}

namespace lowkey::kvstore {

enum class RestoreEnd { kComplete, kMiss, kCorrupt, kFailed };

struct RestoreOutcome {
  size_t restored = 0;                     // pages of the leading run that are in place
  RestoreEnd end = RestoreEnd::kComplete;  // what stopped it
  std::string reason;
};

class RestoreTransfer : public std::enable_shared_from_this<RestoreTransfer> {
 public:
  using Done = std::function<void(const RestoreOutcome&)>;

  RestoreTransfer(std::shared_ptr<StoreLink> link, uint64_t id, std::vector<PageRead> pages,
                  Deadline deadline, const PageOrigin& origin, std::shared_ptr<BounceBuffers> buffers,
                  PageVerifier& verifier, Done done);

  uint64_t id() const { return id_; }
  void arm();    // the deadline runs from here, also while it waits for its turn
  void start();  // asks the store; does nothing the second time
  void on_found(const wire::LookupReply& reply);
  void stop(RestoreEnd end, const std::string& reason);  // the first reason counts

 private:
  struct Source {
    kernels::PageHeader header;
    uint64_t lease = 0;
    std::vector<uint64_t> offsets;
  };
  Status accept(const wire::LookupReply& reply);
  void fetch_next();
  void verify(size_t first, size_t count, std::shared_ptr<BounceBuffer> buffer);
  void verified(size_t count, size_t good);
  void finish_if_idle();

  const std::shared_ptr<StoreLink> link_;
  boost::asio::io_context& io_;
  const uint64_t id_;
  const Deadline deadline_;
  const PageOrigin origin_;
  std::vector<PageRead> pages_;
  const std::shared_ptr<BounceBuffers> buffers_;
  PageVerifier& verifier_;  // not touched any more once stopped
  Done done_;
  boost::asio::steady_timer timer_;

  bool asked_ = false;
  bool answered_ = false;
  std::vector<Source> sources_;   // the leading run that may be fetched
  std::vector<uint64_t> leases_;  // to give back, beside the corrupt one
  std::vector<uint64_t> corrupt_;
  size_t next_fetch_ = 0;
  bool fetching_ = false;
  size_t verifying_ = 0;  // batches with the verifier
  bool stopped_ = false;
  std::shared_ptr<std::atomic<bool>> cancelled_ = std::make_shared<std::atomic<bool>>(false);
  RestoreOutcome outcome_;
};

}  // namespace lowkey::kvstore
