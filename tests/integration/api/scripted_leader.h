// A replica's leader as the coordinator sees it: the peer side of the real protocol over the loopback
// network, with a script instead of an engine. It repeats "words" (token ids) until max_tokens, one event per
// token.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "monitoring/metrics.h"
#include "transport/loopback/loopback_network.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {

inline constexpr Duration kPatience = std::chrono::seconds(30);  // for what must happen; loaded machines

inline transport::ControlOptions control_options(transport::Role role, int world_rank) {
  transport::ControlOptions options;
  options.self.role = role;
  options.self.world_rank = world_rank;
  options.self.host = "one-host";
  options.cluster_secret = "0123456789abcdef0123456789abcdef";
  options.missed_heartbeats = 30;  // a thread that is not scheduled for seconds is not dead
  options.handshake_deadline = kPatience;
  return options;
}

class ScriptedLeader {
 public:
  struct Script {
    bool ready = true;
    uint64_t max_sequence_tokens = 1024;
    std::vector<int32_t> tokens = {100};  // repeated
    size_t hold_after = SIZE_MAX;         // tokens after which an answer waits for release()
    bool answer_metrics = true;
    bool stops = false;          // the last token ends the answer: it is an end-of-text or a stop token
    std::optional<Error> error;  // instead of an answer, after `hold_after` tokens
    wire::KvReport kv;           // with the first and the last event, where it is set
    uint32_t cached_store = 0;   // of cached_tokens
    uint32_t cached_disk = 0;    // of those
    wire::ReplicaState state;    // the rest of its reports: cache identity, rates, queue
  };

  ScriptedLeader(const std::shared_ptr<transport::LoopbackNetwork>& network, const std::string& coordinator,
                 Script script, int replica = 0)
      : script_(std::move(script)),
        metrics_({{"role", "worker"}, {"rank", std::to_string(replica + 1)}}),
        work_(io_.get_executor()) {
    auto options = control_options(transport::Role::kWorker, replica + 1);
    options.self.replica = replica;
    transport::ControlHandlers handlers;
    handlers.on_message = [this](const transport::ConnectionPtr&, transport::MessageType type,
                                 std::string_view body) { on_message(type, body); };
    auto made = network->make_transport(io_, std::move(options), std::move(handlers));
    LOWKEY_CHECK(made.ok(), "{}", made.error().message);
    transport_ = std::move(*made);
    address_ = transport_.control->address();
    transport_.control->connect(coordinator, Deadline::in(kPatience), [this](auto result) {
      LOWKEY_CHECK(result.ok(), "{}", result.error().message);
      connection_ = *result;
      send_state();
    });
    thread_ = std::thread([this] { io_.run(); });
  }
  ~ScriptedLeader() { stop(); }

  // Leaves the network. What is still queued for it may belong to others and the other way round: flush()
  // both sides before either goes.
  void stop() {
    if (!thread_.joinable()) return;
    boost::asio::post(io_, [this] {
      connection_.reset();
      transport_.data.reset();
      transport_.control.reset();
      work_.reset();
      io_.stop();
    });
    thread_.join();
    io_.restart();
  }
  void flush() { io_.poll(); }

  const std::string& address() const { return address_; }

  // Lets held answers go on, and the later ones.
  void release() {
    boost::asio::post(io_, [this] {
      script_.hold_after = SIZE_MAX;
      auto running = std::exchange(running_, {});
      for (auto& [id, sequence] : running) answer(id, sequence);
    });
  }
  void set_ready(bool ready, const std::string& reason = "") {
    boost::asio::post(io_, [this, ready, reason] {
      script_.ready = ready;
      reason_ = reason;
      send_state();
    });
  }

  // Pages that its device has gained; `sequence` 0: the one that is due.
  void send_pages(const std::vector<Hash128>& pages, bool reset = false, uint64_t sequence = 0) {
    boost::asio::post(io_, [this, pages, reset, sequence] {
      wire::PrefixEvents events;
      events.set_sequence(sequence > 0 ? (prefix_sequence_ = sequence) : ++prefix_sequence_);
      events.set_reset(reset);
      events.set_added(pages.data(), pages.size() * sizeof(Hash128));
      (void)connection_->send(transport::MessageType::kPrefixEvents, events.SerializeAsString());
    });
  }

  // What has arrived. wait_* are false when patience ran out.
  // What the script says at once to the first n requests is on its way: no fault from now on overtakes it.
  bool wait_submits(size_t n) {
    return wait([this, n] { return answered_ >= n; });
  }
  bool wait_cancels(size_t n) {
    return wait([this, n] { return cancels_ >= n; });
  }
  bool wait_resyncs(size_t n) {
    return wait([this, n] { return resyncs_ >= n; });
  }
  bool wait_drained() {
    return wait([this] { return drained_; });
  }
  std::vector<wire::Submit> submits() {
    std::lock_guard lock(mutex_);
    return submits_;
  }
  size_t cancels() {
    std::lock_guard lock(mutex_);
    return cancels_;
  }

 private:
  struct Sequence {
    wire::Submit submit;
    size_t sent = 0;
  };

  void on_message(transport::MessageType type, std::string_view body) {
    switch (type) {
      case transport::MessageType::kSubmit: {
        Sequence sequence;
        sequence.submit.ParseFromArray(body.data(), static_cast<int>(body.size()));
        note([&] { submits_.push_back(sequence.submit); });
        sequence.sent = sequence.submit.emitted_size();
        if (sequence.submit.sampling().prompt_logprobs()) score_prompt(sequence.submit);
        answer(sequence.submit.request_id(), sequence);
        return note([&] { ++answered_; });
      }
      case transport::MessageType::kPrefixResync:
        return note([&] { ++resyncs_; });
      case transport::MessageType::kCancel: {
        wire::Cancel cancel;
        cancel.ParseFromArray(body.data(), static_cast<int>(body.size()));
        running_.erase(cancel.request_id());
        note([&] { ++cancels_; });
        return;
      }
      case transport::MessageType::kDrain:
        return note([&] { drained_ = true; });
      case transport::MessageType::kMetricsRequest:
        return send_metrics(body);
      default:
        return;
    }
  }

  // Two tokens at a time, as an engine does with longer prompts.
  void score_prompt(const wire::Submit& submit) {
    for (int i = 1; i < submit.prompt_size(); i += 2) {
      wire::TokenEvents events;
      auto& event = *events.add_events();
      event.set_request_id(submit.request_id());
      for (int j = i; j < std::min(i + 2, submit.prompt_size()); ++j) {
        auto& logprob = *event.add_prompt_logprobs();
        logprob.set_token(submit.prompt(j));
        logprob.set_logprob(-0.25f * static_cast<float>(j));
        event.add_prompt_top_logprobs();
      }
      send(events);
    }
  }

  void answer(uint64_t id, Sequence sequence) {
    const auto& sampling = sequence.submit.sampling();
    if (sampling.max_tokens() == 0) {
      wire::TokenEvents events;
      auto& event = *events.add_events();
      event.set_request_id(id);
      event.set_finish(wire::FINISH_LENGTH);
      return send(events);
    }
    while (sequence.sent < sampling.max_tokens() && sequence.sent < script_.hold_after) {
      wire::TokenEvents events;
      auto& event = *events.add_events();
      event.set_request_id(id);
      const int32_t token = script_.tokens[sequence.sent % script_.tokens.size()];
      event.add_tokens(token);
      if (sampling.logprobs()) {
        auto& logprob = *event.add_logprobs();
        logprob.set_token(token);
        logprob.set_logprob(-0.5);
        auto& top = *event.add_top_logprobs();
        for (uint32_t i = 0; i < sampling.top_logprobs(); ++i) {
          auto& entry = *top.add_entries();
          entry.set_token(token + static_cast<int32_t>(i));
          entry.set_logprob(-0.5f - static_cast<float>(i));
        }
      }
      const bool first = sequence.sent == static_cast<size_t>(sequence.submit.emitted_size());
      if (first) {
        event.set_cached_tokens(1 + script_.cached_store);
        event.set_cached_tokens_store(script_.cached_store);
        event.set_cached_tokens_disk(script_.cached_disk);
      }
      if (++sequence.sent == sampling.max_tokens())
        event.set_finish(script_.stops ? wire::FINISH_STOP : wire::FINISH_LENGTH);
      if (script_.kv.levels() > 0 && (first || event.finish() != wire::FINISH_NONE))
        *event.mutable_kv() = script_.kv;
      send(events);
    }
    if (sequence.sent == sampling.max_tokens()) return;
    if (script_.error) {
      wire::TokenEvents events;
      auto& event = *events.add_events();
      event.set_request_id(id);
      event.set_finish(wire::FINISH_ERROR);
      event.set_error(script_.error->message);
      event.set_error_code(static_cast<uint32_t>(script_.error->code));
      return send(events);
    }
    running_[id] = std::move(sequence);
  }

  void send(const wire::TokenEvents& events) {
    if (connection_)
      (void)connection_->send(transport::MessageType::kTokenEvents, events.SerializeAsString());
  }
  void send_state() {
    wire::ReplicaState state = script_.state;
    state.set_ready(script_.ready);
    state.set_not_ready_reason(reason_);
    state.set_max_sequence_tokens(script_.max_sequence_tokens);
    (void)connection_->send(transport::MessageType::kReplicaState, state.SerializeAsString());
  }
  void send_metrics(std::string_view body) {
    if (!script_.answer_metrics) return;
    wire::MetricsRequest request;
    request.ParseFromArray(body.data(), static_cast<int>(body.size()));
    wire::MetricsReply reply;
    reply.set_id(request.id());
    reply.set_families(metrics_.serialize());
    (void)connection_->send(transport::MessageType::kMetricsReply, reply.SerializeAsString());
  }

  template <class Predicate>
  bool wait(Predicate predicate) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, Deadline::in(kPatience).at(), predicate);
  }
  template <class F>
  void note(F f) {
    std::lock_guard lock(mutex_);
    f();
    changed_.notify_all();
  }

  Script script_;
  std::string reason_;
  monitoring::Metrics metrics_;
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  transport::LoopbackTransport transport_;
  std::string address_;
  transport::ConnectionPtr connection_;
  std::map<uint64_t, Sequence> running_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<wire::Submit> submits_;
  size_t answered_ = 0;  // of them: as far as the script goes without release()
  size_t cancels_ = 0;
  size_t resyncs_ = 0;
  uint64_t prefix_sequence_ = 0;
  bool drained_ = false;
  std::thread thread_;
};

}  // namespace lowkey::coordinator
