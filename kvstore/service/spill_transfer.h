// One spill to one store: reserve -> put of all granted pages under one flush -> commit. Lives until its
// outcome is reported, exactly once. I/O thread.
//
// A reservation whose put was begun and did not succeed is left to expire: the transport may still be writing
// there, so its space must not be given away early.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include <functional>
#include <memory>
#include <vector>

#include "base/deadline.h"
#include "kvstore/service/store_link.h"

namespace lowkey::wire {
class ReserveReply;
class CommitReply;
}  // namespace lowkey::wire

namespace lowkey::kvstore {

class SpillTransfer : public std::enable_shared_from_this<SpillTransfer> {
 public:
  using Done = std::function<void(const SpillOutcome&)>;

  // `token` is held as long as the transport can read the pages.
  SpillTransfer(std::shared_ptr<StoreLink> link, uint64_t id, std::vector<PageWrite> pages, Deadline deadline,
                std::shared_ptr<void> token, Done done);

  void start();
  void on_reserved(const wire::ReserveReply& reply);
  void on_committed(const wire::CommitReply& reply);
  void fail(const std::string& reason);  // every page that has no other outcome yet

 private:
  void put();
  void commit();
  void finish();

  const std::shared_ptr<StoreLink> link_;
  const uint64_t id_;
  const Deadline deadline_;
  std::vector<PageWrite> pages_;
  std::shared_ptr<void> token_;
  Done done_;
  boost::asio::steady_timer timer_;
  SpillOutcome outcome_;
  size_t undecided_;
  struct Granted {
    size_t page;
    uint64_t reservation;
    std::vector<uint64_t> offsets;
  };
  std::vector<Granted> granted_;
};

}  // namespace lowkey::kvstore
