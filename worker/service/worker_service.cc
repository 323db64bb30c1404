#include "worker/service/worker_service.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <iterator>

#include "base/log.h"

namespace lowkey::worker {

using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

WorkerService::WorkerService(boost::asio::io_context& io, monitoring::Metrics& metrics, Options options)
    : io_(io),
      metrics_(metrics),
      options_(std::move(options)),
      reporter_(metrics),
      unproven_stores_(options_.stores) {
  check_proven();
}

WorkerService::~WorkerService() = default;

transport::ControlHandlers WorkerService::handlers() {
  return {.on_up = [this](const ConnectionPtr& peer) { up(peer); },
          .on_message = [this](const ConnectionPtr& peer, MessageType type,
                               std::string_view body) { message(peer, type, body); },
          .on_down = [this](const ConnectionPtr& peer, const Error& error) { down(peer, error); },
          .on_attested = [this](const ConnectionPtr& peer,
                                const transport::Attestation& path) { attested(peer, path); }};
}

void WorkerService::attach(transport::ControlPlane& control, transport::DataPlane& data) {
  reporter_.attach(control);
  stores_ = std::make_unique<kvstore::StoreSet>(io_, data, metrics_, options_.origin, options_.spill);
}

void WorkerService::post(std::function<void()> task) {
  boost::asio::post(io_, std::move(task));
}

void WorkerService::up(const ConnectionPtr& peer) {
  if (peer->peer().role == Role::kStore) {
    stores_->on_up(peer, options_.require_transport == "any");
    return count_stores();
  }
  on_peer(peer);
}

void WorkerService::message(const ConnectionPtr& peer, MessageType type, std::string_view body) {
  if (peer->peer().role == Role::kStore) {
    stores_->on_message(peer, type, body);
    return count_stores();
  }
  if (type != MessageType::kMetricsRequest) return on_message(peer, type, body);
  if (const Status answered = reporter_.answer(*peer, body); !answered.ok()) {
    spdlog::warn("metrics not sent: {}", answered.error().message);
  }
}

void WorkerService::down(const ConnectionPtr& peer, const Error& error) {
  const transport::PeerInfo& info = peer->peer();
  if (info.role == Role::kStore) {
    stores_->on_down(peer, error);
    return count_stores();
  }
  if (error.code == Code::kCancelled) return end(error);
  end({Code::kUnavailable,
       fmt::format("lost {} {}: {}", to_string(info.role), info.world_rank, error.message),
       {}});
}

// Before the replica is ready, a path that is refused ends it. Later it is the store that has come the wrong
// way, possibly only to be tried: one that is not used costs pages, and ends nobody who serves.
void WorkerService::attested(const ConnectionPtr& peer, const transport::Attestation& path) {
  const Status met = transport::check_required(path, options_.require_transport);
  if (!met.ok() && !proven_) return end(met.error());
  if (!met.ok()) {
    spdlog::warn("{}: this store is not used", met.error().message);
    metrics_.add(monitoring::Metric::kPeersDown, 1, {{"reason", "refused"}});
    options_.on_refused(path.peer_rank);
    return peer->close(met.error().message);
  }
  if (path.peer_role == Role::kStore) {
    stores_->admit(peer);
    count_stores();
  }
  proven_stores_.insert(path.peer_rank);
  if (unproven_stores_) unproven_stores_->erase(path.peer_rank);
  check_proven();
}

void WorkerService::expect_stores(const std::set<int>& ranks) {
  if (options_.stores || proven_) return;
  unproven_stores_.emplace();
  std::ranges::set_difference(ranks, proven_stores_,
                              std::inserter(*unproven_stores_, unproven_stores_->end()));
  check_proven();
}

void WorkerService::check_proven() {
  proven_ = proven_ || (unproven_stores_ && unproven_stores_->empty());
}

std::string WorkerService::stores_unproven() const {
  if (options_.require_transport == "any" || proven_) return {};
  if (!unproven_stores_) return "the cluster's stores are not known yet";
  return fmt::format("transport to {} store(s) not proven yet", unproven_stores_->size());
}

// A store is there once it has told about its pool, in a message of its own, and come the way that is
// required.
void WorkerService::count_stores() {
  std::vector<uint64_t> ready = stores_->ready();
  if (ready == ready_stores_) return;
  ready_stores_ = std::move(ready);
  ++store_changes_;
  store_set_ = ready_stores_.empty() ? 0 : store_changes_;
}

void WorkerService::end(const Error& reason) {
  if (ended_) return;
  ended_ = true;
  options_.on_end(reason);
}

void WorkerService::fill_ports(EnginePorts& ports) {
  ports.spill = [this](std::vector<kvstore::PageWrite> pages,
                       std::function<void(const kvstore::SpillOutcome&)> done) {
    post([this, pages = std::move(pages), done = std::move(done)]() mutable {
      stores_->spill(std::move(pages), Deadline::in(options_.transfer_deadline), std::move(done));
    });
  };
  ports.restore = [this](std::vector<kvstore::PageRead> pages, kvstore::RestoreOptions wanted,
                         std::function<void(const kvstore::RestoreReport&)> done) {
    post([this, pages = std::move(pages), wanted, done = std::move(done)]() mutable {
      uint64_t bytes = 0;
      for (const kvstore::PageRead& page : pages) {
        for (const auto& slab : page.slabs) bytes += slab.size();
      }
      stores_->restore(std::move(pages), wanted, transfer_deadline(bytes), std::move(done));
    });
  };
  ports.stores = [this] { return store_set_.load(); };
}

// A store that is gone is noticed by its connection; this bounds one that is there and does not move.
Deadline WorkerService::transfer_deadline(uint64_t bytes) const {
  constexpr uint64_t kSlowestLink = 10'000'000;  // bytes per second: a tenth of 1 Gbit/s
  const auto moving = std::chrono::milliseconds(bytes * 1000 / kSlowestLink);
  return Deadline::in(options_.transfer_deadline + std::min<Duration>(moving, std::chrono::seconds(55)));
}

}  // namespace lowkey::worker
