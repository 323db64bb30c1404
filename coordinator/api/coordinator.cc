#include "coordinator/api/coordinator.h"

#include <spdlog/spdlog.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>

#include "coordinator/admission/admission.h"
#include "coordinator/api/explainer.h"
#include "coordinator/api/generations.h"
#include "coordinator/api/metrics_page.h"
#include "coordinator/api/routes.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/work_pool.h"
#include "coordinator/membership/membership.h"
#include "coordinator/routing/router.h"
#include "transport/metrics_reporter.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

using transport::ConnectionPtr;
using transport::MessageType;

// Long prompts are rare; two threads keep one giant from holding up the others.
constexpr int kTextThreads = 2;
constexpr size_t kTextQueue = 64;
// Time for the last answers to reach their clients once the drain is over.
constexpr auto kFlushDeadline = std::chrono::seconds(2);

ServerOptions at_address(ServerOptions limits, const ServeConfig& config) {
  limits.listen = config.listen;
  limits.port = config.port;
  return limits;
}

}  // namespace

struct Coordinator::Impl {
  Impl(boost::asio::io_context& io, const ServeConfig& config, std::shared_ptr<const ServedModel> served,
       monitoring::Metrics& metrics, ServerOptions limits)
      : model(std::move(served)),
        drain_seconds(config.drain_seconds),
        reporter(metrics),
        membership(metrics),
        admission(config.max_queued, metrics),
        pool(kTextThreads, kTextQueue),
        router(config, membership, metrics),
        generations({io, *model, membership, router, explainer, admission, pool, metrics}),
        metrics_page(io, membership, reporter),
        has_no_key(!config.api_key.empty() && ApiKeys(config.api_key).none()),
        routes({io, *model, membership, generations, explainer, metrics_page, pool}, config.api_key),
        server(io, at_address(std::move(limits), config), routes, metrics),
        timer(io) {}

  void on_message(const ConnectionPtr& connection, MessageType type, std::string_view body) {
    switch (type) {
      case MessageType::kTokenEvents: {
        wire::TokenEvents events;
        if (!parse(events, connection, body)) return;
        if (connection == leader_of(connection)) generations.on_events(connection->peer().replica, events);
        return;
      }
      case MessageType::kReplicaState: {
        wire::ReplicaState state;
        if (parse(state, connection, body)) on_state(connection, state);
        return;
      }
      case MessageType::kPrefixEvents: {
        wire::PrefixEvents events;
        if (parse(events, connection, body)) router.on_prefix_events(connection, events);
        return;
      }
      case MessageType::kMetricsReply: {
        wire::MetricsReply reply;
        if (parse(reply, connection, body)) metrics_page.on_reply(connection, reply);
        return;
      }
      default:
        spdlog::warn("message of type {} is not for a coordinator", static_cast<int>(type));
    }
  }

  void on_state(const ConnectionPtr& connection, const wire::ReplicaState& state) {
    membership.on_state(connection, state);
    if (was_ready || !membership.ready()) return;
    was_ready = true;
    reporter.set_ready();
  }

  template <class Message>
  bool parse(Message& message, const ConnectionPtr& connection, std::string_view body) {
    if (message.ParseFromArray(body.data(), static_cast<int>(body.size()))) return true;
    spdlog::error("malformed {} from rank {}: closing", message.GetTypeName(), connection->peer().world_rank);
    connection->close("malformed message");
    return false;
  }

  ConnectionPtr leader_of(const ConnectionPtr& connection) {
    const Replica* replica = membership.find(connection->peer().replica);
    return replica ? replica->leader : nullptr;
  }

  void on_up(const ConnectionPtr& connection) {
    if (membership.on_up(connection)) router.on_up(connection);
  }

  void on_down(const ConnectionPtr& connection, const Error& reason) {
    if (membership.is_member(connection)) router.on_down(connection);
    const int replica = membership.on_down(connection, reason);
    metrics_page.on_down(connection);
    if (replica >= 0) generations.on_replica_lost(replica, reason.message);
  }

  void drain(Coordinator& self) {
    if (draining) return generations.fail_all(api_error(503, "The server is shutting down."));
    draining = true;
    routes.set_draining();
    server.drain();
    spdlog::info("draining: {} requests in flight, {} s", generations.in_flight(), drain_seconds);
    timer.expires_after(std::chrono::seconds(drain_seconds));
    timer.async_wait([this](const boost::system::error_code& cancelled) {
      if (!cancelled) generations.fail_all(api_error(503, "The server is shutting down."));
    });
    generations.drain([this, &self] { stop(self); });
  }

  void stop(Coordinator& self) {
    for (const auto& [id, replica] : membership.replicas()) {
      if (!replica.leader) continue;
      if (const Status sent = replica.leader->send(MessageType::kDrain, wire::Drain().SerializeAsString());
          !sent.ok())
        spdlog::warn("drain of replica {}: {}", id, sent.error().message);
    }
    timer.expires_after(kFlushDeadline);
    timer.async_wait([this](const boost::system::error_code& cancelled) {
      if (!cancelled) server.cut();
    });
    server.stop([this, &self] {
      timer.cancel();
      if (self.on_drained) self.on_drained();
    });
  }

  // Later ones refer to earlier ones and go first.
  std::shared_ptr<const ServedModel> model;
  int drain_seconds;
  transport::MetricsReporter reporter;
  Membership membership;
  Admission admission;
  WorkPool pool;
  Router router;
  Explainer explainer;
  Generations generations;
  MetricsPage metrics_page;
  bool has_no_key;  // although keys are asked for
  Routes routes;
  Server server;
  boost::asio::steady_timer timer;
  bool draining = false;
  bool was_ready = false;
};

Coordinator::Coordinator(boost::asio::io_context& io, const ServeConfig& config,
                         std::shared_ptr<const ServedModel> model, monitoring::Metrics& metrics,
                         ServerOptions limits)
    : impl_(std::make_unique<Impl>(io, config, std::move(model), metrics, std::move(limits))) {}

Coordinator::~Coordinator() = default;

transport::ControlHandlers Coordinator::control_handlers() {
  Impl* impl = impl_.get();
  return {.on_up = [impl](const ConnectionPtr& connection) { impl->on_up(connection); },
          .on_message = [impl](const ConnectionPtr& connection, MessageType type,
                               std::string_view body) { impl->on_message(connection, type, body); },
          .on_down = [impl](const ConnectionPtr& connection,
                            const Error& error) { impl->on_down(connection, error); }};
}

Membership& Coordinator::membership() {
  return impl_->membership;
}
transport::MetricsReporter& Coordinator::metrics_reporter() {
  return impl_->reporter;
}
Status Coordinator::start() {
  if (impl_->has_no_key)
    return Error{Code::kUsage, "--api-key: expected keys with commas between them, found only commas",
                 "api-key"};
  return impl_->server.start();
}
int Coordinator::port() const {
  return impl_->server.port();
}
size_t Coordinator::in_flight() const {
  return impl_->generations.in_flight();
}
size_t Coordinator::connections() const {
  return impl_->server.connections();
}
void Coordinator::drain() {
  impl_->drain(*this);
}

}  // namespace lowkey::coordinator
