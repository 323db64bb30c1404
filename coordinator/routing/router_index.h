// Which pages each holder has, a replica's device or a store, as far as their PrefixEvents have told. A hint:
// what is outdated here costs time, never a wrong token. I/O thread only.
#pragma once

#include <cstdint>
#include <map>
#include <span>

#include "coordinator/routing/page_set.h"

namespace lowkey::wire {
class PrefixEvents;
}
namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::coordinator {

struct Holder {
  enum class Kind { kDevice, kStore };
  Kind kind = Kind::kDevice;
  int id = 0;  // of the replica; world rank of the store

  auto operator<=>(const Holder&) const = default;
};

class RouterIndex {
 public:
  // Of all holders together; then that page of the holder that has most is forgotten which came, or was used,
  // the longest ago. About 80 MB, 33 million tokens at 32 tokens per page.
  static constexpr size_t kMaxPages = 1 << 20;

  // Feeds lowkey_router_index_pages.
  explicit RouterIndex(monitoring::Metrics& metrics, size_t max_pages = kMaxPages);

  // False: something of this holder was missed, and it should be asked to send everything; until it does so,
  // with `reset`, true is returned and nothing taken.
  bool on_events(Holder holder, const wire::PrefixEvents& events);
  // It was asked to send everything, for whatever reason.
  void await_reset(Holder holder);
  void drop(Holder holder);
  // A request for these pages, the first of a prompt, goes to that replica: where they are, on its device or
  // else in a store, they are forgotten after others; the first one last, as the rest is no use without it.
  void used(int replica, uint32_t num_ranks, std::span<const Hash128> pages);

  // Null: nothing is known of it. Stores as they are numbered in their pages' identities: slices of rank 0.
  const PageSet* pages(Holder holder) const;
  const std::map<int, const PageSet*>& stores() const { return stores_; }  // by world rank
  size_t size() const { return size_; }

 private:
  struct Sender {
    PageSet pages;
    uint64_t sequence = 0;  // of its last event
    bool awaiting_reset = false;
  };
  bool take(Sender& sender, const wire::PrefixEvents& events);
  void forget_surplus();
  void publish();

  monitoring::Metrics& metrics_;
  const size_t max_pages_;
  std::map<Holder, Sender> senders_;      // bounded by the cluster's members
  std::map<int, const PageSet*> stores_;  // of senders_
  size_t size_ = 0;
};

}  // namespace lowkey::coordinator
