#include "coordinator/routing/router_index.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "kvstore/page/page_identity.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {

using monitoring::Metric;

namespace {

constexpr size_t kIdentityBytes = sizeof(Hash128);

template <class F>
void for_each_identity(const std::string& bytes, F f) {
  for (size_t at = 0; at < bytes.size(); at += kIdentityBytes) {
    Hash128 page;
    std::memcpy(&page, bytes.data() + at, kIdentityBytes);
    f(page);
  }
}

}  // namespace

RouterIndex::RouterIndex(monitoring::Metrics& metrics, size_t max_pages)
    : metrics_(metrics), max_pages_(max_pages) {
  publish();
}

bool RouterIndex::on_events(Holder holder, const wire::PrefixEvents& events) {
  Sender& sender = senders_[holder];
  if (holder.kind == Holder::Kind::kStore) stores_[holder.id] = &sender.pages;
  const bool taken = take(sender, events);
  forget_surplus();
  publish();
  return taken;
}

bool RouterIndex::take(Sender& sender, const wire::PrefixEvents& events) {
  if (sender.awaiting_reset && !events.reset()) return true;  // the reset will tell these too
  const bool whole =
      events.added().size() % kIdentityBytes == 0 && events.removed().size() % kIdentityBytes == 0;
  if (!whole || (!events.reset() && events.sequence() != sender.sequence + 1)) {
    sender.awaiting_reset = true;
    return false;
  }
  sender.sequence = events.sequence();
  sender.awaiting_reset = false;
  if (events.reset()) {
    size_ -= sender.pages.size();
    sender.pages.clear();
  }
  for_each_identity(events.removed(),
                    [&](const Hash128& page) { size_ -= sender.pages.erase(page) ? 1 : 0; });
  for_each_identity(events.added(), [&](const Hash128& page) { size_ += sender.pages.insert(page) ? 1 : 0; });
  return true;
}

void RouterIndex::await_reset(Holder holder) {
  senders_[holder].awaiting_reset = true;
}

void RouterIndex::drop(Holder holder) {
  const auto sender = senders_.find(holder);
  if (sender == senders_.end()) return;
  size_ -= sender->second.pages.size();
  if (holder.kind == Holder::Kind::kStore) stores_.erase(holder.id);
  senders_.erase(sender);
  publish();
}

void RouterIndex::used(int replica, uint32_t num_ranks, std::span<const Hash128> pages) {
  const auto device = senders_.find({Holder::Kind::kDevice, replica});
  for (size_t i = pages.size(); i-- > 0;) {
    if ((device != senders_.end() && device->second.pages.use(pages[i])) || stores_.empty()) continue;
    const Hash128 slice = kvstore::rank_identity(pages[i], 0, static_cast<int>(num_ranks));
    for (const auto& [rank, stored] : stores_) {
      if (senders_.at({Holder::Kind::kStore, rank}).pages.use(slice)) break;
    }
  }
}

const PageSet* RouterIndex::pages(Holder holder) const {
  const auto sender = senders_.find(holder);
  return sender == senders_.end() ? nullptr : &sender->second.pages;
}

void RouterIndex::forget_surplus() {
  while (size_ > max_pages_) {
    const auto most = std::max_element(senders_.begin(), senders_.end(), [](const auto& a, const auto& b) {
      return a.second.pages.size() < b.second.pages.size();
    });
    if (!most->second.pages.forget_oldest()) return;
    --size_;
  }
}

void RouterIndex::publish() {
  size_t in_stores = 0;
  for (const auto& [rank, pages] : stores_) in_stores += pages->size();
  metrics_.set(Metric::kRouterIndexPages, static_cast<double>(size_ - in_stores), {{"holder", "device"}});
  metrics_.set(Metric::kRouterIndexPages, static_cast<double>(in_stores), {{"holder", "store"}});
}

}  // namespace lowkey::coordinator
