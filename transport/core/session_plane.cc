#include "transport/core/session_plane.h"

#include <boost/asio/post.hpp>

#include "base/log.h"
#include "transport/core/session.h"
#include "transport/core/session_context.h"

namespace lowkey::transport {

SessionPlane::SessionPlane(std::shared_ptr<SessionContext> context, std::unique_ptr<LinkProvider> links)
    : context_(std::move(context)), links_(std::move(links)) {
  links_->listen([this](std::shared_ptr<Link> link) { accept(std::move(link)); });
}

SessionPlane::~SessionPlane() {
  links_->stop_listening();
  context_->handlers = {};
  const auto sessions = std::move(context_->sessions);
  context_->sessions.clear();
  for (const auto& [id, session] : sessions) session->abandon();
}

std::string SessionPlane::address() const {
  return links_->address();
}

void SessionPlane::connect(const std::string& address, Deadline deadline,
                           std::function<void(Result<ConnectionPtr>)> done) {
  auto link = links_->connect(address);
  if (!link.ok()) {
    boost::asio::post(context_->io, [done = std::move(done), error = link.error()] { done(error); });
    return;
  }
  const uint64_t id = context_->next_id++;
  auto session =
      std::make_shared<Session>(context_, id, std::move(*link), Handshake::Side::kClient, std::move(done));
  context_->sessions.emplace(id, session);
  session->start(deadline);
}

void SessionPlane::accept(std::shared_ptr<Link> link) {
  if (context_->stats.handshakes_now >= kMaxHandshakes) {
    spdlog::warn("connection from {} dropped: {} handshakes under way", link->remote(), kMaxHandshakes);
    ++context_->stats.handshakes_refused;
    link->close(Duration::zero());
    return;
  }
  const uint64_t id = context_->next_id++;
  auto session = std::make_shared<Session>(context_, id, std::move(link), Handshake::Side::kServer, nullptr);
  context_->sessions.emplace(id, session);
  session->start(Deadline::in(context_->options.handshake_deadline));
}

void SessionPlane::shutdown() {
  links_->stop_listening();
  const auto sessions = context_->sessions;
  for (const auto& [id, session] : sessions) session->close("shutting down");
}

TransportStats SessionPlane::stats() const {
  TransportStats stats = context_->stats;
  if (context_->gauge) context_->gauge(stats);
  return stats;
}

Status validate(const ControlOptions& options) {
  if (options.cluster_secret.size() < kMinSecretBytes) {
    return Error{Code::kUsage, fmt::format("cluster secret of {} bytes, at least {}",
                                           options.cluster_secret.size(), kMinSecretBytes)};
  }
  if (options.heartbeat_interval <= Duration::zero() || options.missed_heartbeats < 1 ||
      options.handshake_deadline <= Duration::zero() || options.max_bytes_in_flight == 0) {
    return Error{
        Code::kUsage,
        "heartbeat interval, missed heartbeats, handshake deadline and bytes in flight must be positive"};
  }
  return {};
}

}  // namespace lowkey::transport
