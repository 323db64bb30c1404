// The third line of a step: what the ranks have computed becomes real. Tokens are sampled, complete pages
// published, events sent, and ended sequences return their memory.
#include <algorithm>
#include <array>

#include "base/log.h"
#include "base/trace.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/engine.h"

namespace lowkey::worker {

using kvstore::PageRef;
using monitoring::Metric;

bool Engine::commit(const Step& step, const Status& status) {
  const TraceSpan span("commit");
  if (!status.ok()) {
    fail_all(status.error());
    return false;
  }
  wire::TokenEvents events;
  for (auto& ended : ended_) *events.add_events() = std::move(*ended);
  ended_.clear();
  choose_tokens(step);
  size_t row = 0;
  for (size_t i = 0; i < step.schedule.sequences.size(); ++i)
    row += commit_sequence(step.schedule.sequences[i], choices_[i], row, &events);
  if (events.events_size() > 0) emit(events);
  send_prefix_events();
  count_step(step);
  const bool worked = !step.empty(), arrived = take_submitted();
  update_state(!broken_ && (worked || arrived || scheduler_.has_released()));
  return worked || events.events_size() > 0;
}

// `row`: of its first logits. Returns how many of them are its own.
size_t Engine::commit_sequence(const ScheduledSequence& scheduled, const Choice& choice, size_t row,
                               wire::TokenEvents* events) {
  Sequence& sequence = *scheduled.sequence;
  const int before = sequence.computed;
  const bool samples = scheduled.wants_logits();
  const size_t rows = scheduled.num_logits();
  sequence.computed += scheduled.num_tokens;
  count_tokens(sequence, before, scheduled.num_tokens);
  if (!memory_.archive()) publish_pages(sequence, before / memory_.layout().page_tokens);
  if (scheduled.compacts) {
    sequence.tokens_archived(
        sequence.prompt_archived ? 0 : memory_.archive()->budget(sequence.prompt_tokens).exact);
  }
  sequence.release_behind_window();
  if (scheduled.all_logits) score_prompt(sequence, before, scheduled.num_tokens, row, events);
  if (samples && !choice.waits) tell_token(sequence, *choice.token, events);
  if (samples && choice.waits) {
    const std::span logits = executor_.logits(row + rows - 1);
    sequence.parked.emplace().logits.assign(logits.begin(), logits.end());
    parked_.push_back(sequence.id);
  }
  return rows;
}

// The logits behind token i score token i + 1. A sequence that was preempted comes by the same tokens again.
void Engine::score_prompt(Sequence& sequence, int first, int count, size_t row, wire::TokenEvents* events) {
  const int end = std::min(first + count + 1, sequence.prompt_tokens);
  if (sequence.prompt_scored >= end) return;
  wire::TokenEvent& event = *events->add_events();
  event.set_request_id(sequence.request_id);
  for (int& next = sequence.prompt_scored; next < end; ++next) {
    const SampledToken token = scored(executor_.logits(row + (next - 1 - first)), sequence.tokens[next],
                                      sequence.sampling.top_logprobs);
    add_logprobs(token, event.mutable_prompt_logprobs(), event.mutable_prompt_top_logprobs());
  }
}

void Engine::count_tokens(Sequence& sequence, int before, int num_tokens) {
  const int again = std::max(0, std::min(sequence.computed_before, sequence.computed) - before);
  if (again > 0) metrics_.add(Metric::kRecomputedTokens, again, {{"cause", "preemption"}});
  sequence.computed_before = std::max(sequence.computed_before, sequence.computed);
  // All that a continued stream computes before its first token here, it had computed elsewhere.
  const int retried = sequence.emitted_before > 0 && !sequence.reported ? num_tokens - again : 0;
  if (retried > 0) metrics_.add(Metric::kRecomputedTokens, retried, {{"cause", "retry"}});
  sequence.report.recomputed_tokens += again + retried;
  if (sequence.recomputing.until == 0 || sequence.computed < sequence.recomputing.until) return;
  const auto done = std::exchange(sequence.recomputing, {});
  const double regret = seconds(Clock::now() - done.begin) - done.restore_seconds;
  if (regret > 0) metrics_.add(Metric::kCostRegret, regret, {{"decision", "recompute"}});
}

void Engine::report_first(Sequence& sequence, wire::TokenEvent* event) {
  const RequestReport& report = sequence.report;
  event->set_cached_tokens(report.cached_tokens());
  event->set_cached_tokens_store(report.store_tokens());
  event->set_cached_tokens_disk(report.disk_tokens);
  event->set_queue_seconds(report.queue_seconds);
  const int computed = sequence.prompt_tokens - report.cached_tokens();
  const std::array<std::pair<const char*, int>, 3> found{
      {{"device", report.device_tokens}, {"host", report.host_tokens}, {"disk", report.disk_tokens}}};
  metrics_.add(Metric::kPromptTokens, computed, {{"source", "computed"}});
  for (const auto& [tier, tokens] : found) {
    metrics_.add(Metric::kPromptTokens, tokens, {{"source", tier}});
    metrics_.add(Metric::kPrefixHits, tokens, {{"tier", tier}});
  }
}

// Pages completed by this step exist from here on, for everybody unless they are tainted. An equal one may
// have been published by a batch mate: then the sequence goes on with that, and its own copy is returned.
void Engine::publish_pages(Sequence& sequence, int first_page) {
  const int page_tokens = memory_.layout().page_tokens;
  const int complete = std::min(sequence.computed, sequence.tainted_from) / page_tokens;
  Scheduler::extend_identities(sequence, complete, page_tokens);
  for (int page = first_page; page < complete; ++page) {
    const Hash128& identity = sequence.identities[page];
    const int first_token = page * page_tokens;
    PageRef shared = pool_.publish(sequence.pages[page], identity,
                                   std::span(sequence.tokens).subspan(first_token, page_tokens), first_token);
    if (!(shared == sequence.pages[page])) {
      sequence.pages[page] = std::move(shared);
      sequence.table.exchanged(page);
    }
    offer_spill({sequence.pages[page].id(), identity, static_cast<uint64_t>(first_token)});
  }
}

void Engine::finish(Sequence& sequence) {
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->live.erase(sequence.request_id);
  }
  restores_.forget(sequence.id);
  scheduler_.remove(sequence);
}

// A lost step leaves no rank's memory to be trusted: everybody is told, and nothing runs any more.
void Engine::fail_all(const Error& error) {
  spdlog::error("step {} is lost: {}", step_number_, error.message);
  broken_ = true;
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->state.broken = true;  // before the inbox is emptied for the last time
  }
  take_inbox();
  wire::TokenEvents events;
  for (auto& ended : ended_) *events.add_events() = std::move(*ended);
  ended_.clear();
  while (!scheduler_.sequences().empty()) {
    Sequence& sequence = *scheduler_.sequences().begin()->second;
    wire::TokenEvent& event = *events.add_events();
    event.set_request_id(sequence.request_id);
    event.set_finish(wire::FINISH_ERROR);
    event.set_error("the replica lost a step: " + error.message);
    event.set_error_code(static_cast<uint32_t>(Code::kUnavailable));
    sequence.report.to_wire(sequence.prompt_tokens, memory_.layout().num_levels, event.mutable_kv());
    finish(sequence);
  }
  update_state(false);
  if (events.events_size() > 0) emit(events);
}

void Engine::emit(const wire::TokenEvents& events) {
  if (ports_.emit) ports_.emit(events);
}

void Engine::send_prefix_events() {
  if (prefix_events_.empty() || !ports_.prefix_events) return;
  prefix_events_.take(
      [this] { return pool_.identities(); },
      [this](const wire::PrefixEvents& events) {
        if (events.reset()) metrics_.add(Metric::kPrefixEventsSent, 1, {{"kind", "reset"}});
        const auto count = [](const std::string& ids) { return ids.size() / sizeof(Hash128); };
        metrics_.add(Metric::kPrefixEventsSent, count(events.added()), {{"kind", "added"}});
        metrics_.add(Metric::kPrefixEventsSent, count(events.removed()), {{"kind", "removed"}});
        ports_.prefix_events(events);
      });
}

void Engine::update_state(bool work_left) {
  const kvstore::Ledger ledger = pool_.ledger();
  metrics_.set(Metric::kRequestsRunning, static_cast<double>(scheduler_.running()));
  metrics_.set(Metric::kRequestsWaiting, static_cast<double>(scheduler_.waiting()));
  metrics_.set(Metric::kRestoresInFlight, static_cast<double>(restores_.in_flight()));
  metrics_.set(Metric::kSpillQueuePages, static_cast<double>(spills_.pending()));
  const MeasuredRates rates = cost_.rates();
  metrics_.set(Metric::kPrefillRate, rates.prefill_tokens_per_second);
  metrics_.set(Metric::kRestoreRate, rates.restore_bytes_per_second);
  metrics_.set(Metric::kRestoreLatency, rates.restore_latency_seconds);
  metrics_.set(Metric::kEncodeRate, rates.spill_bytes_per_second);
  const uint64_t queued = scheduler_.queued_tokens(true);
  metrics_.set(Metric::kQueuedTokens, static_cast<double>(queued));
  std::lock_guard lock(inbox_->mutex);
  inbox_->state.running = static_cast<uint32_t>(scheduler_.running());
  inbox_->state.waiting = static_cast<uint32_t>(scheduler_.waiting());
  inbox_->state.kv_bytes_used = ledger.used;
  inbox_->state.queued_prompt_tokens = queued;
  inbox_->state.rates = rates;
  inbox_->state.broken = broken_;
  inbox_->work_left = work_left;
  inbox_->wake_at = restores_.next_deadline();
  for (const uint64_t id : parked_) {
    const Sequence* sequence = scheduler_.find(id);
    if (sequence == nullptr || !sequence->parked) continue;
    const TimePoint limit = sequence->parked->since + options_.grammar_wait;
    if (!inbox_->wake_at || limit < *inbox_->wake_at) inbox_->wake_at = limit;
  }
}

void Engine::count_pages_read(const PagesRead& read) {
  for (size_t i = 1; i < read.at_levels.size(); ++i) {
    if (read.at_levels[i] > 0)
      metrics_.add(Metric::kPagesRead, static_cast<double>(read.at_levels[i]),
                   {{"levels", std::to_string(i)}});
  }
  if (read.coarse_tokens > 0) metrics_.add(Metric::kCoarseTokens, static_cast<double>(read.coarse_tokens));
}

void Engine::count_step(const Step& step) {
  metrics_.add(Metric::kPreemptions,
               scheduler_.preemptions() - std::exchange(preemptions_counted_, scheduler_.preemptions()));
  metrics_.add(Metric::kPrefixQueries,
               scheduler_.prefix_queries() - std::exchange(queries_counted_, scheduler_.prefix_queries()));
  const auto count = [](uint64_t now, uint64_t* counted) {
    return static_cast<double>(now - std::exchange(*counted, now));
  };
  metrics_.add(Metric::kEvictedPages, count(pool_.evictions(), &counted_.evictions));
  metrics_.add(Metric::kRestoreDecisions, count(scheduler_.computed_elsewhere(), &waits_counted_),
               {{"decision", "wait"}});
  metrics_.add(Metric::kLevelDrops, count(pool_.idle_level_drops(), &counted_.idle_drops),
               {{"pages", "idle"}});
  metrics_.add(Metric::kLevelDrops, count(pool_.in_use_level_drops(), &counted_.in_use_drops),
               {{"pages", "in_use"}});
  if (step.schedule.sequences.empty()) return;
  const double took = seconds(Clock::now() - step.start);
  const auto [copied, copying] = executor_.pages().take_spilled();
  cost_.on_spill(copied, copying);
  cost_.on_step(step.schedule.prefill_tokens, step.schedule.decode_tokens, took);
  metrics_.observe(Metric::kStepSeconds, took);
  metrics_.observe(Metric::kStepTokens, step.schedule.prefill_tokens + step.schedule.decode_tokens);
  metrics_.observe(Metric::kStepSequences, static_cast<double>(step.schedule.sequences.size()));
}

}  // namespace lowkey::worker
