// One store as its workers use it: spills and restores of pages, bounded and with deadlines. Whatever goes
// wrong ends in a counted outcome, and a page that cannot be read is a miss. Thread rule: everything, `done`
// callbacks included, on the io_context's single thread.
#pragma once

#include <deque>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kvstore/service/restore_transfer.h"
#include "kvstore/service/spill_transfer.h"
#include "kvstore/service/transfer_budget.h"

namespace lowkey::kvstore {

class StoreClient {
 public:
  // Restores run one after the other (they share one wire and one verifier); this many may wait.
  static constexpr size_t kMaxRestores = 64;
  static constexpr uint64_t kMaxSpillBytes = 64ull << 20;
  static constexpr uint32_t kMaxSpills = 16;

  // `verifier` and `buffers` are shared by all stores of a worker. `data` and `verifier` outlive the client.
  StoreClient(boost::asio::io_context& io, transport::DataPlane& data, transport::ConnectionPtr connection,
              const PageOrigin& origin, PageVerifier& verifier, std::shared_ptr<BounceBuffers> buffers);
  ~StoreClient();  // fails what is in flight

  const transport::ConnectionPtr& connection() const { return link_->connection; }
  bool ready() const { return link_->pool != nullptr; }  // the store has told about its pool

  void on_message(transport::MessageType type, std::string_view body);
  void on_down(const std::string& reason);  // fails what is in flight, at once

  // Outcomes of all pages. Pages beyond the bounds above, or beyond kMaxPagesPerMessage, are staging_full.
  void spill(std::vector<PageWrite> pages, Deadline deadline, SpillTransfer::Done done);
  void restore(std::vector<PageRead> pages, Deadline deadline, RestoreTransfer::Done done);

 private:
  Status handle(transport::MessageType type, std::string_view body);
  Status open_pool(std::string_view body);
  void start_next_restore();

  const std::shared_ptr<StoreLink> link_;
  const PageOrigin origin_;
  PageVerifier& verifier_;
  const std::shared_ptr<BounceBuffers> buffers_;
  const std::shared_ptr<TransferBudget> spill_budget_;
  Duration max_spill_time_{};  // well within the store's reservations
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, std::shared_ptr<SpillTransfer>> spills_;
  std::deque<std::shared_ptr<RestoreTransfer>> restores_;  // the first one runs
  const std::shared_ptr<StoreClient*>
      self_;  // for transfers that end after the client: then it holds nullptr
};

}  // namespace lowkey::kvstore
