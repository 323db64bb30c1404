#include "coordinator/api/generations.h"

#include <spdlog/spdlog.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <unordered_map>

#include "base/deadline.h"
#include "coordinator/api/dispatcher.h"
#include "coordinator/api/generation.h"
#include "coordinator/api/request_reader.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/work_pool.h"
#include "coordinator/membership/membership.h"
#include "monitoring/metrics.h"

namespace lowkey::coordinator {
namespace {

namespace asio = boost::asio;
using monitoring::Metric;

Reply::Elsewhere writing_on(WorkPool& pool, asio::io_context& io) {
  return [&pool, &io](std::function<HttpResponse()> make, std::function<void(HttpResponse)> done) {
    return pool.try_run([&io, make = std::move(make), done = std::move(done)]() mutable {
      auto response =
          std::make_shared<HttpResponse>(error_http(api_error(500, "The answer was not written.")));
      try {
        *response = make();
      } catch (const std::exception& e) {
        spdlog::error("writing an answer: {}", e.what());
      }
      // The exchange belongs to the I/O thread, its last reference too.
      asio::post(io, [done = std::move(done), response] { done(std::move(*response)); });
    });
  };
}

}  // namespace

struct Generations::Impl : std::enable_shared_from_this<Impl> {
  explicit Impl(Parts parts)
      : io(parts.io),
        model(parts.model),
        membership(parts.membership),
        dispatcher(parts.model, parts.membership, parts.router, parts.explainer,
                   writing_on(parts.pool, parts.io)),
        admission(parts.admission),
        reader(parts.io, parts.model, parts.pool),
        metrics(parts.metrics) {}

  void refuse(HttpExchange& exchange, ApiError error, const char* reason) {
    metrics.add(Metric::kRejectedRequests, 1, {{"reason", reason}});
    error.retry_after_seconds = admission.retry_after_seconds();
    exchange.respond(error_http(error));
  }

  void begin(ExchangePtr exchange, Endpoint endpoint, std::string tenant) {
    if (draining) return refuse(*exchange, api_error(503, "The server is shutting down."), "draining");
    auto ticket = admission.admit();
    if (!ticket) {
      return refuse(*exchange,
                    api_error(429, fmt::format("The server holds {} requests, its limit; try again later.",
                                               admission.limit())),
                    "queue_full");
    }
    auto call = std::make_shared<Call>(exchange, endpoint, std::move(tenant));
    call->seed = random_bits();
    const uint64_t id = add(std::move(call), *std::move(ticket));
    exchange->on_disconnect([weak = weak_from_this(), weak_call = std::weak_ptr(active.at(id)->call)] {
      const auto self = weak.lock();
      const auto call = weak_call.lock();
      if (self && call) self->on_disconnect(call);
    });
    const auto done = [weak = weak_from_this(), id](Result<GenerationRequest> request) {
      if (auto self = weak.lock()) self->on_read(id, std::move(request));
    };
    if (reader.read(endpoint, std::move(exchange->request().body), done)) return;
    metrics.add(Metric::kRejectedRequests, 1, {{"reason", "queue_full"}});
    fail(id, api_error(429, "Too many long prompts are being read; try again later."));
  }

  uint64_t add(std::shared_ptr<Call> call, Admission::Ticket ticket) {
    const uint64_t id = next_id++;
    auto generation = std::make_shared<Generation>(std::move(call), std::move(ticket));
    generation->id = id;
    generation->call->open.push_back(id);
    active.emplace(id, std::move(generation));
    return id;
  }

  void on_read(uint64_t id, Result<GenerationRequest> request) {
    const auto found = active.find(id);
    if (found == active.end()) return;  // the client has gone
    if (!request.ok()) return fail(id, api_error(request.error()));
    Call& call = *found->second->call;
    call.request = std::move(request).value();
    if (const auto& name = call.request.model; !name.empty() && name != model.id)
      return fail(id, model_not_found(name, model.id));
    if (!membership.ready()) {
      metrics.add(Metric::kRejectedRequests, 1, {{"reason", "not_ready"}});
      return fail(id, api_error(503, "No replica is ready: " + membership.not_ready_reason() + "."));
    }
    const uint64_t told = membership.max_sequence_tokens();
    const uint64_t limit = told == 0 ? model.max_tokens : std::min<uint64_t>(told, model.max_tokens);
    if (!add_choices(id)) {
      metrics.add(Metric::kRejectedRequests, 1, {{"reason", "queue_full"}});
      return fail(id,
                  api_error(429, fmt::format("The server holds {} requests, its limit, and each of the {} "
                                             "choices counts; try again later.",
                                             admission.limit(), call.request.choices())));
    }
    const std::vector<uint64_t> all = call.open;
    for (const uint64_t each : all)
      if (auto error = active.at(each)->fit(limit)) return fail(id, *error);
    for (const uint64_t each : all) begin_choice(each);
  }

  // All the others; false when there is no room for them.
  bool add_choices(uint64_t first) {
    const std::shared_ptr<Call> call = active.at(first)->call;
    uint64_t leader = first;
    for (size_t index = 1; index < call->request.choices(); ++index) {
      auto ticket = admission.admit();
      if (!ticket) return false;
      const uint64_t id = add(call, *std::move(ticket));
      Generation& generation = *active.at(id);
      generation.index = index;
      if (generation.first_of_prompt())
        leader = id;
      else
        active.at(leader)->waiting.push_back(id);
    }
    return true;
  }

  // The first choices of the prompts; those may have ended already, with all others, by an error.
  void begin_choice(uint64_t id) {
    const auto found = active.find(id);
    if (found != active.end() && found->second->first_of_prompt()) submit(id, -1, "");
  }

  // The others of the prompt that this one has computed.
  void begin_waiting(Generation& generation) {
    if (generation.waiting.empty()) return;
    Call& call = *generation.call;
    call.prompt_details[generation.index / call.request.n] = generation.answer->prompt_details();
    for (const uint64_t id : std::exchange(generation.waiting, {})) {
      const auto found = active.find(id);
      if (found == active.end()) return;  // with them all
      submit(id, -1, "");
    }
  }

  // Sends it to a replica, or ends it with an error. `cause`: why it has to move; empty: it is new.
  void submit(uint64_t id, int excluded, const std::string& cause) {
    if (dispatcher.place(*active.at(id), excluded, cause)) return;
    fail(id, api_error(503, cause.empty() ? "No replica can take the request now."
                                          : fmt::format("{}; no other can take the request over.", cause)));
  }

  void on_events(int replica, const wire::TokenEvents& events) {
    for (const auto& event : events.events()) {
      const auto found = active.find(event.request_id() >> Generation::kAttemptBits);
      // Unknown: cancelled, or moved, while this was on its way.
      if (found == active.end()) continue;
      const auto& generation = found->second;
      if (generation->replica == replica && generation->wire_id() == event.request_id())
        on_event(generation, event);
    }
  }

  // Takes a reference of its own: the generation may end here.
  void on_event(std::shared_ptr<Generation> generation, const wire::TokenEvent& event) {
    const TimePoint now = Clock::now();
    Answer& answer = *generation->answer;
    if (event.tokens_size() > 0) note_tokens(*generation, event, now);
    const Answer::State state = answer.add(event);
    note_report(*generation, event);
    if (answer.started() || state == Answer::State::kFinished) begin_waiting(*generation);
    if (active.find(generation->id) == active.end()) return;  // one of those could not be sent anywhere
    switch (state) {
      case Answer::State::kOpen:
        return;
      case Answer::State::kStopped:
        dispatcher.cancel(*generation);
        [[fallthrough]];
      case Answer::State::kFinished:
        note_finished(*generation, now);
        metrics.add(Metric::kRequestSuccess, 1, {{"finished_reason", to_string(answer.finish())}});
        generation->story->ended = to_string(answer.finish());
        return remove(generation->id);
      case Answer::State::kFailed:
        // A replica that is ending, or leaving and got the request too late; another may take it.
        if (answer.error()->code == Code::kUnavailable)
          return move(generation->id,
                      fmt::format("Replica {}: {}", generation->replica, answer.error()->message));
        if (answer.error()->code == Code::kResourceExhausted && try_another(*generation)) return;
        return fail(generation->id, api_error(*answer.error()));
    }
  }

  void note_tokens(Generation& generation, const wire::TokenEvent& event, TimePoint now) {
    if (!generation.started()) {
      const double waited = seconds(now - generation.call->received);
      generation.story->first_token_seconds = waited;
      metrics.observe(Metric::kTimeToFirstToken, waited);
      metrics.observe(Metric::kQueueTime,
                      seconds(generation.submitted - generation.call->received) + event.queue_seconds());
    } else {
      for (int i = 0; i < event.tokens_size(); ++i)
        metrics.observe(Metric::kInterTokenLatency,
                        seconds(now - generation.last_token) / event.tokens_size());
    }
    dispatcher.note_started(generation);
    generation.last_token = now;
    generation.emitted.insert(generation.emitted.end(), event.tokens().begin(), event.tokens().end());
  }

  void note_report(Generation& generation, const wire::TokenEvent& event) {
    generation.story->answer_tokens = generation.answer->usage().completion_tokens;
    if (event.has_kv()) generation.story->report = event.kv();
  }

  void note_finished(const Generation& generation, TimePoint now) {
    const Usage& usage = generation.answer->usage();
    metrics.observe(Metric::kRequestLatency, seconds(now - generation.call->received));
    metrics.observe(Metric::kRequestPromptTokens, static_cast<double>(usage.prompt_tokens));
    metrics.observe(Metric::kRequestGenerationTokens, static_cast<double>(usage.completion_tokens));
  }

  void on_disconnect(const std::shared_ptr<Call>& call) {
    if (call->open.empty()) return;
    metrics.add(Metric::kClientDisconnects);
    metrics.add(Metric::kRequestSuccess, 1, {{"finished_reason", "cancelled"}});
    for (const uint64_t id : std::vector(call->open)) {
      const auto generation = active.at(id);
      dispatcher.cancel(*generation);
      if (const auto& story = generation->story) story->ended = "cancelled";
      remove(id);
    }
  }

  void on_replica_lost(int replica, const std::string& reason) {
    std::vector<uint64_t> lost;
    for (const auto& [id, generation] : active)
      if (generation->replica == replica) lost.push_back(id);
    for (const uint64_t id : lost) {
      const auto found = active.find(id);
      if (found != active.end() && found->second->replica == replica)
        move(id, fmt::format("Replica {} was lost: {}", replica, reason));
    }
  }

  // Away from its replica: to another one, or to its end.
  void move(uint64_t id, const std::string& reason) {
    Generation& generation = *active.at(id);
    const int lost = generation.replica;
    const bool started = generation.started();
    dispatcher.cancel(generation);  // its leader may still be there
    dispatcher.release(generation);
    if (std::exchange(started ? generation.continued : generation.resubmitted, true)) {
      fail(id, api_error(503, fmt::format("{}; the request had been moved once already.", reason)));
    } else {
      ++generation.attempt;
      generation.answer->move();
      submit(id, lost, reason);
    }
    if (started) {
      const bool goes_on = active.contains(id);
      metrics.add(Metric::kContinuedRequests, 1, {{"outcome", goes_on ? "continued" : "ended"}});
    }
  }

  // Away from a replica that is full, before it has said anything: once. False: no other can take it.
  bool try_another(Generation& generation) {
    if (generation.started() || std::exchange(generation.refused, true)) return false;
    const int full = generation.replica;
    const std::string cause = fmt::format("Replica {}: {}", full, generation.answer->error()->message);
    dispatcher.release(generation);
    ++generation.attempt;
    generation.answer->move();
    return dispatcher.place(generation, full, cause);
  }

  // Ends the request, all of its choices.
  void fail(uint64_t id, ApiError error) {
    const std::shared_ptr<Call> call = active.at(id)->call;
    if (error.retry_after_seconds > 0) error.retry_after_seconds = admission.retry_after_seconds();
    if (error.status >= 500) metrics.add(Metric::kRequestSuccess, 1, {{"finished_reason", "error"}});
    if (call->reply) {
      call->reply->fail(error);
    } else {
      call->exchange->respond(error_http(error));
    }
    for (const uint64_t each : std::vector(call->open)) {
      const auto generation = active.at(each);
      if (each != id) dispatcher.cancel(*generation);
      if (generation->story) {
        generation->story->ended = error.message;
        generation->story->failed = true;
      }
      remove(each);
    }
  }

  void remove(uint64_t id) {
    const auto node = active.extract(id);
    dispatcher.release(*node.mapped());
    std::erase(node.mapped()->call->open, id);
    tell_when_idle();
  }

  void tell_when_idle() {
    if (idle && active.empty()) asio::post(io, std::exchange(idle, nullptr));
  }

  asio::io_context& io;
  const ServedModel& model;
  Membership& membership;
  Dispatcher dispatcher;
  Admission& admission;
  const RequestReader reader;
  monitoring::Metrics& metrics;
  std::unordered_map<uint64_t, std::shared_ptr<Generation>> active;
  // Of no use to a former coordinator's requests, should a worker still answer them.
  uint64_t next_id = random_bits() >> 16;
  bool draining = false;
  std::function<void()> idle;
};

Generations::Generations(Parts parts) : impl_(std::make_shared<Impl>(parts)) {}

Generations::~Generations() = default;

void Generations::begin(ExchangePtr exchange, Endpoint endpoint, std::string tenant) {
  impl_->begin(std::move(exchange), endpoint, std::move(tenant));
}

void Generations::on_events(int replica, const wire::TokenEvents& events) {
  impl_->on_events(replica, events);
}

void Generations::on_replica_lost(int replica, const std::string& reason) {
  impl_->on_replica_lost(replica, reason);
}

size_t Generations::in_flight() const {
  return impl_->active.size();
}

void Generations::drain(std::function<void()> idle) {
  impl_->draining = true;
  impl_->idle = std::move(idle);
  impl_->tell_when_idle();
}

void Generations::fail_all(const ApiError& error) {
  while (!impl_->active.empty()) {
    const auto& [id, generation] = *impl_->active.begin();
    impl_->dispatcher.cancel(*generation);
    impl_->fail(id, error);
  }
}

}  // namespace lowkey::coordinator
