#include "worker/service/worker_service.h"

#include <boost/asio/post.hpp>

#include "base/log.h"

namespace lowkey::worker {

using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

WorkerService::WorkerService(boost::asio::io_context& io, monitoring::Metrics& metrics, Options options)
    : io_(io), metrics_(metrics), options_(std::move(options)), reporter_(metrics) {}

WorkerService::~WorkerService() = default;

transport::ControlHandlers WorkerService::handlers() {
  return {.on_up = [this](const ConnectionPtr& peer) { up(peer); },
          .on_message = [this](const ConnectionPtr& peer, MessageType type,
                               std::string_view body) { message(peer, type, body); },
          .on_down = [this](const ConnectionPtr& peer, const Error& error) { down(peer, error); }};
}

void WorkerService::attach(transport::ControlPlane& control, transport::DataPlane& data) {
  reporter_.attach(control);
  stores_ = std::make_unique<kvstore::StoreSet>(io_, data, metrics_, options_.origin, options_.spill);
}

void WorkerService::post(std::function<void()> task) {
  boost::asio::post(io_, std::move(task));
}

void WorkerService::up(const ConnectionPtr& peer) {
  if (peer->peer().role == Role::kStore) return stores_->on_up(peer);
  on_peer(peer);
}

void WorkerService::message(const ConnectionPtr& peer, MessageType type, std::string_view body) {
  if (peer->peer().role == Role::kStore) return stores_->on_message(peer, type, body);
  if (type != MessageType::kMetricsRequest) return on_message(peer, type, body);
  if (const Status answered = reporter_.answer(*peer, body); !answered.ok()) {
    spdlog::warn("metrics not sent: {}", answered.error().message);
  }
}

void WorkerService::down(const ConnectionPtr& peer, const Error& error) {
  const transport::PeerInfo& info = peer->peer();
  if (info.role == Role::kStore) return stores_->on_down(peer, error);
  if (error.code == Code::kCancelled) return end(error);
  end({Code::kUnavailable,
       fmt::format("lost {} {}: {}", to_string(info.role), info.world_rank, error.message),
       {}});
}

void WorkerService::end(const Error& reason) {
  if (ended_) return;
  ended_ = true;
  options_.on_end(reason);
}

void WorkerService::fill_ports(EnginePorts& ports) {
  ports.spill = [this](std::vector<StagedPage> pages) {
    post([this, pages = std::move(pages)]() mutable { spill(std::move(pages)); });
  };
  ports.restore = [this](std::vector<RestoreTarget> targets, std::function<void(size_t, std::string)> done) {
    post([this, targets = std::move(targets), done = std::move(done)]() mutable {
      restore(std::move(targets), std::move(done));
    });
  };
}

void WorkerService::spill(std::vector<StagedPage> pages) {
  std::vector<kvstore::PageWrite> writes;
  writes.reserve(pages.size());
  for (StagedPage& page : pages) writes.push_back({page.header, page.slabs, std::move(page.keep_alive)});
  // The set counts the outcomes; nobody waits for them.
  stores_->spill(std::move(writes), Deadline::in(options_.transfer_deadline), {});
}

void WorkerService::restore(std::vector<RestoreTarget> targets,
                            std::function<void(size_t, std::string)> done) {
  std::vector<kvstore::PageRead> reads;
  reads.reserve(targets.size());
  for (const RestoreTarget& target : targets) reads.push_back({target.identity, target.slabs});
  stores_->restore(std::move(reads), {}, Deadline::in(options_.transfer_deadline),
                   [done = std::move(done)](const kvstore::RestoreReport& report) {
                     done(report.restored, report.reason);
                   });
}

}  // namespace lowkey::worker
