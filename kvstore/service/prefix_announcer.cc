#include "kvstore/service/prefix_announcer.h"

#include <algorithm>

#include "kvstore/service/page_io.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {

using monitoring::Metric;

PrefixAnnouncer::PrefixAnnouncer(boost::asio::io_context& io, monitoring::Metrics& metrics, Duration delay,
                                 Duration retry, size_t max_announced)
    : metrics_(metrics),
      delay_(delay),
      retry_(retry),
      max_announced_(max_announced),
      timer_(io),
      self_(std::make_shared<PrefixAnnouncer*>(this)) {}

void PrefixAnnouncer::changed(const Hash128& identity, Holder holder, bool held) {
  Page& page = held_[identity];
  page.holders = held ? page.holders | holder : page.holders & ~holder;
  const bool differs = page.announced != (page.holders != 0);
  if (page.holders == 0 && !page.announced) held_.erase(identity);
  if (!coordinator_ || reset_ || !differs) return;
  if (pending_.size() >= kMaxPending) {
    reset_ = true;
  } else {
    pending_.push_back(identity);
  }
  arm(delay_);
}

void PrefixAnnouncer::connect(transport::ConnectionPtr coordinator) {
  coordinator_ = std::move(coordinator);
  reset_ = false;
  pending_.clear();
  if (coordinator_) return resync();
  timer_.cancel();
  armed_ = false;
  for (auto& [identity, page] : held_) page.announced = false;
  std::erase_if(held_, [](const auto& entry) { return entry.second.holders == 0; });
}

void PrefixAnnouncer::resync() {
  reset_ = true;
  arm(Duration::zero());
}

void PrefixAnnouncer::arm(Duration delay) {
  if (armed_ || !coordinator_) return;
  armed_ = true;
  timer_.expires_after(delay);
  timer_.async_wait([self = self_](const boost::system::error_code& error) {
    if (error || *self == nullptr) return;
    (*self)->armed_ = false;
    (*self)->flush();
  });
}

void PrefixAnnouncer::flush() {
  if (!coordinator_) return;
  if (reset_) return send_all();
  std::vector<Hash128> added, removed;
  for (const Hash128& identity : pending_) {
    const auto known = held_.find(identity);
    if (known == held_.end()) continue;
    Page& page = known->second;
    if (page.announced == (page.holders != 0)) continue;
    (page.holders != 0 ? added : removed).push_back(identity);
    page.announced = !page.announced;
    if (page.holders == 0) held_.erase(known);
  }
  pending_.clear();
  if (added.empty() && removed.empty()) return;
  if (!send(false, added, removed)) {
    reset_ = true;
    arm(retry_);
  }
}

void PrefixAnnouncer::send_all() {
  reset_ = false;
  pending_.clear();
  std::erase_if(held_, [](const auto& entry) { return entry.second.holders == 0; });
  std::vector<Hash128> part;
  bool first = true, sent = true;
  const auto flush_part = [&] {
    sent = sent && send(first, part, {});
    first = false;
    part.clear();
  };
  size_t told = 0;
  for (auto& [identity, page] : held_) {
    page.announced = told++ < max_announced_;
    if (!page.announced) continue;
    part.push_back(identity);
    if (part.size() == kMaxPerMessage) flush_part();
  }
  if (first || !part.empty()) flush_part();
  if (sent) return;
  reset_ = true;
  arm(retry_);
}

bool PrefixAnnouncer::send(bool reset, const std::vector<Hash128>& added,
                           const std::vector<Hash128>& removed) {
  const auto bytes = [](const std::vector<Hash128>& identities) {
    return std::string(reinterpret_cast<const char*>(identities.data()), identities.size() * sizeof(Hash128));
  };
  wire::PrefixEvents events;
  events.set_sequence(++sequence_);
  events.set_reset(reset);
  events.set_added(bytes(added));
  events.set_removed(bytes(removed));
  if (!coordinator_->send(transport::MessageType::kPrefixEvents, events.SerializeAsString())) return false;
  const auto count = [&](const char* kind, size_t n) {
    if (n > 0) metrics_.add(Metric::kPrefixEventsSent, static_cast<double>(n), {{"kind", kind}});
  };
  count("added", added.size());
  count("removed", removed.size());
  count("reset", reset ? 1 : 0);
  return true;
}

}  // namespace lowkey::kvstore
