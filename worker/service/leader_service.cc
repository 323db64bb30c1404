#include "worker/service/leader_service.h"

#include <algorithm>
#include <cmath>

#include "base/exit_now.h"
#include "base/log.h"
#include "base/watchdog.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {

using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

namespace {

// Load reports steer routing between replicas; more often would cost more than a step of a small model.
constexpr auto kReportInterval = std::chrono::milliseconds(100);
// Measured rates waver with every step; what the router would decide does not.
constexpr auto kRatesInterval = std::chrono::seconds(1);
constexpr double kRatesChange = 0.1;

template <class Message>
bool parse(Message* message, std::string_view body) {
  return message->ParseFromArray(body.data(), static_cast<int>(body.size()));
}

}  // namespace

EnginePorts LeaderService::ports() {
  EnginePorts ports;
  fill_ports(ports);
  ports.publish_plan = [this](const wire::StepPlan& plan) {
    post([this, body = plan.SerializeAsString()]() mutable {
      send_to_followers(MessageType::kStepPlan, std::move(body));
    });
  };
  ports.send_restore = [this](const wire::RestoreCommand& command) {
    post([this, body = command.SerializeAsString()]() mutable {
      send_to_followers(MessageType::kRestoreCommand, std::move(body));
    });
  };
  ports.emit = [this](const wire::TokenEvents& events) {
    post([this, body = events.SerializeAsString()]() mutable {
      send_to_coordinator(MessageType::kTokenEvents, std::move(body));
    });
  };
  ports.prefix_events = [this](const wire::PrefixEvents& events) {
    post([this, body = events.SerializeAsString()]() mutable {
      send_to_coordinator(MessageType::kPrefixEvents, std::move(body));
    });
  };
  return ports;
}

Status LeaderService::run(Duration step_limit) {
  Watchdog watchdog(step_limit, [] {
    spdlog::critical("a step is beyond its deadline: this rank gives up");
    exit_now(4);
  });
  TimePoint last_report{};
  while (!stopped_) {
    watchdog.begin();
    const bool worked = engine_->step();
    watchdog.end();
    if (engine_->state().broken) return Error{Code::kUnavailable, "a step was lost: this replica ends", {}};
    if (const TimePoint now = Clock::now(); now - last_report >= kReportInterval || !worked) {
      last_report = now;
      report_state();
    }
    if (!worked) engine_->wait_for_work(Deadline::in(std::chrono::seconds(1)));
  }
  return {};
}

void LeaderService::stop() {
  stopped_ = true;
  engine_->drain();  // wakes the step thread
}

void LeaderService::forget_coordinator() {
  coordinator_ = nullptr;
  last_state_.clear();
  engine_->cancel_all();
}

void LeaderService::on_peer(const ConnectionPtr& peer) {
  const transport::PeerInfo& info = peer->peer();
  if (info.role == Role::kCoordinator) {
    coordinator_ = peer;
    engine_->resync_prefixes();
  }
  if (info.role == Role::kWorker) followers_[info.replica_rank] = peer;
  report_state();
}

void LeaderService::on_message(const ConnectionPtr& peer, MessageType type, std::string_view body) {
  const bool from_coordinator = peer->peer().role == Role::kCoordinator;
  const bool from_worker = peer->peer().role == Role::kWorker;
  wire::Cancel cancel;
  if (from_coordinator && type == MessageType::kSubmit) return on_submit(body);
  if (from_coordinator && type == MessageType::kCancel && parse(&cancel, body))
    return engine_->cancel(cancel.request_id());
  if (from_coordinator && type == MessageType::kDrain) return engine_->drain();
  if (from_coordinator && type == MessageType::kPrefixResync) return engine_->resync_prefixes();
  if (from_worker && type == MessageType::kRestoreResult) return on_restore_result(peer, body);
  spdlog::warn("message {} from {} {} makes no sense here", static_cast<int>(type),
               to_string(peer->peer().role), peer->peer().world_rank);
}

void LeaderService::on_submit(std::string_view body) {
  wire::Submit submit;
  if (!parse(&submit, body)) return spdlog::warn("malformed Submit of {} bytes", body.size());
  const uint64_t id = submit.request_id();
  if (const Status queued = engine_->submit(submit); !queued.ok()) refuse(id, queued.error());
}

void LeaderService::refuse(uint64_t request_id, const Error& error) {
  wire::TokenEvents events;
  wire::TokenEvent& event = *events.add_events();
  event.set_request_id(request_id);
  event.set_finish(wire::FINISH_ERROR);
  event.set_error(error.message);
  event.set_error_code(static_cast<uint32_t>(error.code));
  send_to_coordinator(MessageType::kTokenEvents, events.SerializeAsString());
}

void LeaderService::on_restore_result(const ConnectionPtr& peer, std::string_view body) {
  const int rank = peer->peer().replica_rank;
  wire::RestoreResult result;
  if (parse(&result, body)) return engine_->on_restore_result(rank, result);
  // It would be owed for good: see FollowerService::answer().
  end({Code::kUnavailable,
       fmt::format("rank {} of the replica: malformed RestoreResult of {} bytes", rank, body.size()),
       {}});
}

void LeaderService::send_to_followers(MessageType type, std::string body) {
  for (const auto& [rank, follower] : followers_) {
    // A follower that cannot take a plan will miss the step's collective, whose deadline ends this replica.
    if (const Status sent = follower->send(type, body); !sent.ok()) {
      return end(
          {Code::kUnavailable, fmt::format("rank {} of the replica: {}", rank, sent.error().message), {}});
    }
  }
}

void LeaderService::send_to_coordinator(MessageType type, std::string body) {
  if (!coordinator_) return;
  if (const Status sent = coordinator_->send(type, std::move(body)); !sent.ok()) {
    end({Code::kUnavailable, "coordinator: " + sent.error().message, {}});
  }
}

// What was sent stands until something has changed by more than a tenth, or a while has passed.
void LeaderService::fill_rates(const MeasuredRates& now, wire::CostRates* out) {
  const auto changed = [](double before, double after) {
    return std::abs(after - before) > kRatesChange * std::max(before, after);
  };
  const bool differs = changed(rates_.prefill_tokens_per_second, now.prefill_tokens_per_second) ||
                       changed(rates_.decode_step_seconds, now.decode_step_seconds) ||
                       changed(rates_.restore_bytes_per_second, now.restore_bytes_per_second) ||
                       changed(rates_.restore_latency_seconds, now.restore_latency_seconds);
  if (differs || Clock::now() - rates_sent_ >= kRatesInterval) {
    rates_ = now;
    rates_sent_ = Clock::now();
  }
  out->set_prefill_tokens_per_second(rates_.prefill_tokens_per_second);
  out->set_decode_step_seconds(rates_.decode_step_seconds);
  out->set_restore_bytes_per_second(rates_.restore_bytes_per_second);
  out->set_restore_latency_seconds(rates_.restore_latency_seconds);
  out->set_page_bytes(static_cast<double>(engine_->page_bytes(engine_->num_levels())));
  out->set_first_level_bytes(static_cast<double>(engine_->page_bytes(1)));
}

void LeaderService::report_state() {
  const EngineState now = engine_->state();
  post([this, now] {
    wire::ReplicaState state;
    const int missing = options().replica_size - 1 - static_cast<int>(followers_.size());
    const std::string unproven = stores_unproven();
    state.set_ready(missing == 0 && unproven.empty() && !ended());
    if (missing > 0) state.set_not_ready_reason(fmt::format("{} worker(s) not connected yet", missing));
    if (!unproven.empty()) state.set_not_ready_reason(unproven);
    state.set_replica(options().replica);
    state.set_running(now.running);
    state.set_waiting(now.waiting);
    state.set_max_sequence_tokens(now.max_sequence_tokens);
    state.set_kv_bytes_used(now.kv_bytes_used);
    state.set_kv_bytes_capacity(now.kv_bytes_capacity);
    state.set_queued_prompt_tokens(now.queued_prompt_tokens);
    engine_->describe_cache(state.mutable_cache());
    fill_rates(now.rates, state.mutable_rates());
    std::string body = state.SerializeAsString();
    if (!coordinator_ || body == last_state_) return;
    if (state.ready() && !was_ready_) reporter().set_ready();
    was_ready_ = state.ready();
    last_state_ = body;
    send_to_coordinator(MessageType::kReplicaState, std::move(body));
  });
}

}  // namespace lowkey::worker
