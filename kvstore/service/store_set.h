// The stores of a cluster as one: each page has one store, chosen by rendezvous hashing of its identity among
// the stores that are connected, so that all ranks agree and the loss of one store moves no other store's
// pages. What the recipe says of spilled pages happens here, off the calling thread. Thread rule: as
// StoreClient.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvstore/service/store_client.h"

namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::kvstore {

// Index of the store that keeps this page; `stores`: the stores' world ranks in any order, at least one.
size_t rendezvous(const Hash128& identity, std::span<const int> stores);

class StoreSet {
 public:
  // `origin`: whose pages are read and written. Everything referred to outlives the set.
  StoreSet(boost::asio::io_context& io, transport::DataPlane& data, monitoring::Metrics& metrics,
           const PageOrigin& origin, SpillFormat format = {});
  ~StoreSet();

  // To be called from the worker's ControlHandlers for peers of Role::kStore. One that is not `admitted`
  // opens its pool, so that the way there can be measured, and is not used before admit().
  void on_up(const transport::ConnectionPtr& store, bool admitted = true);
  void admit(const transport::ConnectionPtr& store);
  void on_message(const transport::ConnectionPtr& store, transport::MessageType type, std::string_view body);
  void on_down(const transport::ConnectionPtr& store, const Error& error);

  std::vector<uint64_t> ready() const;  // connection ids of the stores that can be used now, ascending
  size_t num_ready() const { return ready().size(); }

  // Each page to its store, in the form that the recipe spills. `done` may be empty; exactly once otherwise,
  // possibly before spill() returns.
  void spill(std::vector<PageWrite> pages, Deadline deadline, std::function<void(const SpillOutcome&)> done);
  // Fills the wanted slabs of the pages, in order. A page of which a wanted slab cannot be had is a miss,
  // which ends the restore unless it may have gaps; targets of pages that are reported missing may have been
  // written. `done` exactly once, possibly before restore() returns. REQUIRES: every page wants a slab.
  void restore(std::vector<PageRead> pages, const RestoreOptions& options, Deadline deadline,
               std::function<void(const RestoreReport&)> done);

 private:
  struct Restore;
  struct Staging;
  // The store that each page belongs to; null where none is ready.
  template <class Identity>
  std::vector<StoreClient*> stores_of(size_t num_pages, Identity&& identity_of) const;
  void stage_and_put(std::shared_ptr<Staging> staging);
  void put(std::vector<PageWrite> pages, Deadline deadline, std::function<void(const SpillOutcome&)> done);
  // Static, because a restore can end after the set is gone.
  static void count(monitoring::Metrics& metrics, const SpillOutcome& outcome);
  static void finish(monitoring::Metrics& metrics, const Restore& restore);

  boost::asio::io_context& io_;
  transport::DataPlane& data_;
  monitoring::Metrics& metrics_;
  const std::shared_ptr<InFlight> spilled_bytes_, restored_bytes_;
  const RestoreTransfer::Context context_;
  const std::shared_ptr<TransferBuffers> staging_;            // of transcoded pages
  ByteThread bytes_;                                          // its jobs use what is above, and nothing below
  std::map<uint64_t, std::unique_ptr<StoreClient>> clients_;  // by connection id
  const std::shared_ptr<StoreSet*> self_;  // for spills that are staged after the set is gone: then null
};

}  // namespace lowkey::kvstore
