// One store as its workers use it: spills and restores of pages, bounded and with deadlines. Whatever goes
// wrong ends in a counted outcome, and a page that cannot be read is a miss. Thread rule: everything, `done`
// callbacks included, on the io_context's single thread.
#pragma once

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
  static constexpr size_t kMaxRestores = 64;  // under way; FetchQueue says who goes on first
  static constexpr uint64_t kMaxSpillBytes = 64ull << 20;
  static constexpr uint32_t kMaxSpills = 16;

  // What the clients of one worker share; everything referred to outlives them.
  struct Shared {
    boost::asio::io_context& io;
    transport::DataPlane& data;
    const RestoreTransfer::Context& restores;
    std::shared_ptr<InFlight> spilled_bytes, restored_bytes;
  };
  StoreClient(const Shared& shared, transport::ConnectionPtr connection, bool admitted = true);
  ~StoreClient();  // fails what is in flight

  const transport::ConnectionPtr& connection() const { return link_->connection; }
  // The store has told about its pool, and not that it leaves; and it may be used.
  bool ready() const { return link_->pool != nullptr && !leaving_ && admitted_; }
  void admit() { admitted_ = true; }

  void on_message(transport::MessageType type, std::string_view body);
  void on_down(const std::string& reason);  // fails what is in flight, at once

  // Outcomes of all pages. Pages beyond the bounds above, or beyond kMaxPagesPerMessage, are staging_full.
  void spill(std::vector<PageWrite> pages, Deadline deadline, SpillTransfer::Done done);
  // At least one page, each of which wants a slab.
  void restore(std::vector<PageRead> pages, const RestoreOptions& options, Deadline deadline,
               RestoreTransfer::Done done);

 private:
  Status handle(transport::MessageType type, std::string_view body);
  Status open_pool(std::string_view body);
  void hang_up_if_idle();  // a store that leaves waits for nothing else

  const std::shared_ptr<StoreLink> link_;
  const RestoreTransfer::Context& restore_context_;
  const std::shared_ptr<FetchQueue> fetches_;
  const std::shared_ptr<TransferBudget> spill_budget_;
  Duration max_spill_time_{};  // well within the store's reservations
  bool leaving_ = false;
  bool admitted_;
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, std::shared_ptr<SpillTransfer>> spills_;
  std::unordered_map<uint64_t, std::shared_ptr<RestoreTransfer>> restores_;
  const std::shared_ptr<StoreClient*>
      self_;  // for transfers that end after the client: then it holds nullptr
};

}  // namespace lowkey::kvstore
