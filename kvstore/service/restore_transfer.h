// One restore from one store: lookup with leases -> batches of gets into buffers -> verify and copy into
// place -> release. Over shared memory pages are fetched into place at once and verified there: such a get is
// a copy by this process, so waiting for it to end is safe, and half the memory traffic is saved; never where
// pages lie on a device, which is given verified bytes only. Without gaps it ends at the first page that is
// missing, wrong or late. Reports exactly once, and never while anybody may still write to a target. I/O
// thread.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "kvstore/service/byte_thread.h"
#include "kvstore/service/fetch_queue.h"
#include "kvstore/service/spill_format.h"
#include "kvstore/service/store_link.h"

namespace lowkey::wire {
class FoundPage;
class LookupReply;
}  // namespace lowkey::wire

namespace lowkey::kvstore {

enum class PageFate : uint8_t { kOpen, kMiss, kCorrupt, kFailed, kFromHost, kFromDisk };
inline bool in_place(PageFate fate) {
  return fate == PageFate::kFromHost || fate == PageFate::kFromDisk;
}

struct RestoreOutcome {
  std::vector<PageFate> fates;  // one per page
  uint64_t bytes = 0;           // of the pages in place, as they travelled
  std::string reason;           // of the first page that is not in place

  static RestoreOutcome failed(size_t pages, std::string reason) {
    return {std::vector(pages, PageFate::kFailed), 0, std::move(reason)};
  }
};

class RestoreTransfer final : public FetchQueue::Fetcher,
                              public std::enable_shared_from_this<RestoreTransfer> {
 public:
  using Done = std::function<void(RestoreOutcome)>;
  // What transfers of one worker share. Not touched any more once a transfer was stopped.
  struct Context {
    PageOrigin origin;
    SpillFormat format;
    ByteThread& bytes;
  };

  // `queue`: of the store. `context` outlives the transfer's stop().
  RestoreTransfer(std::shared_ptr<StoreLink> link, std::shared_ptr<FetchQueue> queue, const Context& context,
                  uint64_t id, std::vector<PageRead> pages, const RestoreOptions& options, Deadline deadline,
                  Done done);

  void start();
  void on_found(const wire::LookupReply& reply);
  void fail(const std::string& reason);  // every page that has no other fate yet

  size_t next_batch(size_t most) override;
  void fetch(std::shared_ptr<TransferBuffer> buffer) override;

 private:
  struct Source {
    size_t page = 0;
    kernels::PageHeader header;
    uint64_t lease = 0;
    PageFate tier = PageFate::kFromHost;
    std::array<uint64_t, kernels::kMaxSlabs> offsets{};
  };
  // Bytes of a slab of a page as it is in the store; 0: not wanted.
  uint64_t stored_bytes(size_t page, size_t slab) const;
  uint64_t stored_bytes(size_t page) const;
  uint32_t stored_slabs() const;  // bit i: slab i of some page is wanted
  // Takes over what was found, as far as it is what was asked for. The error ends the transfer.
  Status accept(const wire::LookupReply& reply);
  Status take(size_t page, const wire::FoundPage& found);
  void line_up();
  std::shared_ptr<void> landing_token();
  void verify(size_t first, size_t count, std::shared_ptr<TransferBuffer> buffer);
  void verified(size_t first, const std::vector<bool>& good);
  void lose(size_t page, PageFate fate, const std::string& reason);
  void end_before(size_t source);
  void finish_if_idle();

  const std::shared_ptr<StoreLink> link_;
  const std::shared_ptr<FetchQueue> queue_;
  const Context* const context_;
  boost::asio::io_context& io_;
  const uint64_t id_;
  std::vector<PageRead> pages_;
  const bool gaps_;
  const Deadline deadline_;
  Done done_;
  boost::asio::steady_timer timer_;

  uint32_t slabs_ = 0;  // stored_slabs()
  bool answered_ = false;
  std::vector<Source> sources_;   // what may be fetched, in order
  std::vector<uint64_t> leases_;  // to give back, beside the corrupt ones
  std::vector<uint64_t> corrupt_;
  size_t end_ = 0;                     // of the sources that still count
  size_t open_ = 0;                    // of those, without a fate
  size_t next_fetch_ = 0, batch_ = 0;  // first source of the next batch, how many
  size_t verifying_ = 0;               // batches with the byte thread
  const bool into_place_;              // gets write to the targets
  size_t landing_ = 0;                 // such gets that the transport has not let go of
  bool stopped_ = false;
  size_t first_lost_ = SIZE_MAX;
  std::shared_ptr<std::atomic<bool>> cancelled_ = std::make_shared<std::atomic<bool>>(false);
  RestoreOutcome outcome_;
};

}  // namespace lowkey::kvstore
