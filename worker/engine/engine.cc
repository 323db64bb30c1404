#include "worker/engine/engine.h"

#include <algorithm>
#include <random>

#include "base/bytes.h"
#include "base/log.h"
#include "kvstore/page/page_identity.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

using kvstore::PageRef;
using monitoring::Metric;

namespace {

constexpr size_t kMaxPendingSpills = 4096;
constexpr size_t kMaxKnownStored = 1 << 18;  // 16 bytes each, and the tables around them: about 12 MB

Error invalid(const char* param, const std::string& message) {
  return Error{Code::kInvalidArgument, message, param};
}

}  // namespace

void Engine::Inbox::answer(RestoreAnswer answer) {
  {
    std::lock_guard lock(mutex);
    restores.push_back(std::move(answer));
  }
  arrived.notify_one();
}

Engine::Engine(const EngineOptions& options, Model& model, kvstore::PageMemory& memory,
               transport::HostComm& comm, EnginePorts ports, monitoring::Metrics& metrics)
    : options_(options),
      model_(model),
      memory_(memory),
      ports_(std::move(ports)),
      metrics_(metrics),
      seed_((uint64_t{std::random_device{}()} << 32) | std::random_device{}()),
      pool_(memory),
      executor_(options.executor, model, memory, comm, ports_, metrics),
      restores_(
          {.num_ranks = comm.size(), .wait = options.restore_wait}, pool_,
          [this](const wire::RestoreCommand& command) {
            if (ports_.send_restore) ports_.send_restore(command);
            executor_.restore(command, [inbox = inbox_](const wire::RestoreResult& result) {
              inbox->answer({0, result.restore_id(), result.pages_restored(), result.first_miss_reason()});
            });
          }),
      spills_(kMaxPendingSpills, kMaxKnownStored),
      scheduler_(options.scheduler, pool_,
                 ports_.restore ? [this](Sequence& sequence) { return restores_.begin(sequence); }
                                : Scheduler::FetchPrefix()) {
  inbox_->state.max_sequence_tokens =
      std::min<uint64_t>(memory.max_sequence_tokens(), model.config().max_positions);
  inbox_->state.kv_bytes_capacity = memory.capacity_bytes();
  metrics_.set(Metric::kEngineQueueLimit, static_cast<double>(options.max_waiting));
  update_state(false);
}

Engine::~Engine() = default;

// ---- any thread
// ---------------------------------------------------------------------------------------------

Status Engine::submit(const wire::Submit& request) {
  LOWKEY_ASSIGN(sequence, admit(request, seed_ ^ request.request_id()));
  {
    std::lock_guard lock(inbox_->mutex);
    const EngineState& state = inbox_->state;
    if (state.broken) return Error{Code::kUnavailable, "the replica has lost a step and is going down", {}};
    if (state.draining) return Error{Code::kUnavailable, "the replica is draining", {}};
    if (inbox_->submitted.size() + state.waiting >= options_.max_waiting) {
      return Error{Code::kResourceExhausted,
                   fmt::format("the engine's queue of {} requests is full", options_.max_waiting),
                   {}};
    }
    if (!inbox_->live.insert(request.request_id()).second) {
      return invalid("request_id", fmt::format("request {} is running already", request.request_id()));
    }
    sequence->id = inbox_->next_sequence_id++;
    inbox_->submitted.push_back(std::move(sequence));
  }
  inbox_->arrived.notify_one();
  return {};
}

Result<std::unique_ptr<Sequence>> Engine::admit(const wire::Submit& request, uint64_t fallback_seed) const {
  auto sequence = std::make_unique<Sequence>();
  LOWKEY_ASSIGN(sampling, SamplingParams::from_wire(request.sampling(), fallback_seed));
  sequence->request_id = request.request_id();
  sequence->tokens.assign(request.prompt().begin(), request.prompt().end());
  sequence->prompt_tokens = request.prompt_size();
  sequence->sampling = std::move(sampling);
  const ModelConfig& config = model_.config();
  if (request.prompt().empty()) return invalid("prompt", "prompt: expected at least one token, found none");
  for (const int32_t token : request.prompt()) {
    if (token < 0 || token >= config.vocab_size) {
      return invalid("prompt",
                     fmt::format("prompt: expected token ids below {}, found {}", config.vocab_size, token));
    }
  }
  const uint64_t total = uint64_t(request.prompt_size()) + sequence->sampling.max_tokens;
  if (total > static_cast<uint64_t>(config.max_positions)) {
    return invalid("max_tokens",
                   fmt::format("the model's context is {} tokens; the prompt has {} and max_tokens is {}",
                               config.max_positions, request.prompt_size(), sequence->sampling.max_tokens));
  }
  if (!memory_.fits(total)) {
    return invalid("max_tokens",
                   fmt::format("{} tokens (prompt {} + max_tokens {}) need {} of KV cache; the whole of {} "
                               "holds at most {} tokens",
                               total, request.prompt_size(), sequence->sampling.max_tokens,
                               format_bytes(memory_.layout().bytes_for_tokens(total)),
                               format_bytes(memory_.capacity_bytes()), memory_.max_sequence_tokens()));
  }
  const ExecutorOptions& identity = options_.executor;
  sequence->root =
      kvstore::root_identity(identity.model_fingerprint, identity.layout_fingerprint, request.salt());
  return sequence;
}

void Engine::cancel(uint64_t request_id) {
  {
    std::lock_guard lock(inbox_->mutex);
    if (!inbox_->live.contains(request_id)) return;
    inbox_->cancelled.push_back(request_id);
  }
  inbox_->arrived.notify_one();
}

void Engine::drain() {
  std::lock_guard lock(inbox_->mutex);
  inbox_->state.draining = true;
}

void Engine::on_restore_result(int rank, const wire::RestoreResult& result) {
  inbox_->answer({rank, result.restore_id(), result.pages_restored(), result.first_miss_reason()});
}

EngineState Engine::state() const {
  std::lock_guard lock(inbox_->mutex);
  EngineState state = inbox_->state;
  state.waiting += static_cast<uint32_t>(inbox_->submitted.size());
  return state;
}

// ---- step thread
// --------------------------------------------------------------------------------------------

bool Engine::step() {
  const Step step = schedule();
  const Status status = execute(step);
  return commit(step, status);
}

void Engine::wait_for_work(Deadline deadline) {
  std::unique_lock lock(inbox_->mutex);
  const auto until =
      inbox_->restore_deadline ? std::min(deadline.at(), *inbox_->restore_deadline) : deadline.at();
  inbox_->arrived.wait_until(lock, until, [&] {
    return inbox_->work_left || !inbox_->submitted.empty() || !inbox_->cancelled.empty() ||
           !inbox_->restores.empty();
  });
}

Engine::Step Engine::schedule() {
  Step step;
  if (broken_) return step;
  take_inbox();
  end_restores();
  step.schedule = scheduler_.schedule();
  step.device = pool_.ledger();  // before pages are pinned for copies
  step.used_pages = pool_.used_pages();
  step.evictable_pages = pool_.evictable_pages();
  plan_spills(&step);
  return step;
}

void Engine::take_inbox() {
  std::vector<std::unique_ptr<Sequence>> submitted;
  std::vector<uint64_t> cancelled;
  std::vector<RestoreAnswer> answers;
  {
    std::lock_guard lock(inbox_->mutex);
    submitted.swap(inbox_->submitted);
    cancelled.swap(inbox_->cancelled);
    answers.swap(inbox_->restores);
    inbox_->state.waiting += static_cast<uint32_t>(submitted.size());
  }
  for (auto& sequence : submitted) scheduler_.add(std::move(sequence));
  for (const uint64_t request_id : cancelled) {
    Sequence* sequence = scheduler_.find_request(request_id);
    if (sequence == nullptr) continue;  // ended meanwhile
    auto event = std::make_unique<wire::TokenEvent>();
    event->set_request_id(request_id);
    event->set_finish(wire::FINISH_CANCELLED);
    ended_.push_back(std::move(event));
    finish(*sequence);
  }
  for (const RestoreAnswer& answer : answers) {
    if (const auto finished =
            restores_.on_result(answer.rank, answer.restore_id, answer.pages, answer.reason)) {
      on_restore_finished(*finished);
    }
  }
}

void Engine::on_restore_finished(const PrefixRestores::Finished& finished) {
  const double page_tokens = memory_.layout().page_tokens;
  for (size_t i = 0; i < finished.identities.size(); ++i) {
    if (i < finished.restored) {
      spills_.mark_stored(finished.identities[i]);
    } else if (spills_.forget_stored(finished.identities[i])) {
      metrics_.add(Metric::kRecomputedTokens, page_tokens, {{"cause", "restore_miss"}});
    }
  }
  Sequence* sequence = scheduler_.find(finished.sequence_id);
  if (sequence == nullptr) return;  // cancelled, or gave up waiting
  if (!finished.miss_reason.empty()) {
    spdlog::debug("restore of request {}: {} of {} pages: {}", sequence->request_id, finished.restored,
                  finished.identities.size(), finished.miss_reason);
  }
  run_on(*sequence, finished.restored);
}

// Sequences that have waited long enough compute their prefix; the restore keeps its pages until it ends.
void Engine::end_restores() {
  for (const uint64_t id : restores_.expire()) {
    Sequence* sequence = scheduler_.find(id);
    if (sequence == nullptr) continue;
    spdlog::warn("request {}: the store did not answer in {:.1f} s; its prefix is computed",
                 sequence->request_id, seconds(options_.restore_wait));
    const size_t hits = sequence->computed / memory_.layout().page_tokens;
    while (sequence->pages.size() > hits) sequence->pages.pop_back();
    run_on(*sequence, 0);
  }
}

void Engine::run_on(Sequence& sequence, size_t restored_pages) {
  const size_t page_tokens = memory_.layout().page_tokens;
  const size_t first = sequence.computed / page_tokens;
  for (size_t page = first; page < first + restored_pages; ++page) {
    const std::span tokens = std::span(sequence.tokens).subspan(page * page_tokens, page_tokens);
    // Published already by somebody faster: share theirs.
    if (auto published = pool_.find(sequence.identities[page], tokens))
      sequence.pages[page] = std::move(*published);
  }
  const int restored = static_cast<int>(restored_pages * page_tokens);
  sequence.computed += restored;
  if (sequence.admissions == 1) sequence.cached_store = restored;
  scheduler_.restored(sequence);
}

void Engine::plan_spills(Step* step) {
  if (!executor_.can_spill() || spills_.empty()) return;
  for (const PendingSpill& spill : spills_.take(executor_.spill_room())) {
    if (auto page = pool_.find(spill.page, spill.identity)) {
      step->spills.push_back(spill);
      step->pinned.push_back(std::move(*page));
    } else {
      spills_.forget_stored(spill.identity);  // evicted before its turn
    }
  }
}

Status Engine::execute(const Step& step) {
  if (step.empty()) return {};
  wire::StepPlan plan;
  plan.set_step(++step_number_);
  for (const uint64_t id : step.schedule.released) plan.add_released(id);
  for (size_t i = 0; i < step.spills.size(); ++i) {
    *plan.add_spills() = place_page(step.pinned[i], step.spills[i].identity, step.spills[i].first_token);
  }
  for (const ScheduledSequence& scheduled : step.schedule.sequences) {
    Sequence& sequence = *scheduled.sequence;
    wire::PlannedSequence& planned = *plan.add_sequences();
    planned.set_sequence_id(sequence.id);
    planned.set_tail(sequence.tail.id());
    planned.set_first_position(sequence.computed);
    const auto first = sequence.tokens.begin() + sequence.computed;
    planned.mutable_tokens()->Add(first, first + scheduled.num_tokens);
    planned.set_first_page(static_cast<uint32_t>(sequence.pages_sent));
    for (size_t page = sequence.pages_sent; page < sequence.pages.size(); ++page) {
      for (const kvstore::SlabId slab : sequence.pages[page].slabs()) planned.add_slabs(slab);
    }
    planned.set_want_logits(scheduled.wants_logits());
    planned.set_levels(memory_.layout().num_levels);
    sequence.pages_sent = sequence.pages.size();
    sequence.known_to_ranks = true;
  }
  wire::DeviceTier& device = *plan.mutable_device();
  device.set_used_bytes(step.device.used);
  device.set_evictable_bytes(step.device.evictable);
  device.set_free_bytes(step.device.free);
  device.set_used_pages(step.used_pages);
  device.set_evictable_pages(step.evictable_pages);
  if (ports_.publish_plan) ports_.publish_plan(plan);
  return executor_.execute(plan);
}

bool Engine::commit(const Step& step, const Status& status) {
  if (!status.ok()) {
    fail_all(status.error());
    return false;
  }
  wire::TokenEvents events;
  for (auto& ended : ended_) *events.add_events() = std::move(*ended);
  ended_.clear();
  size_t row = 0;
  for (const ScheduledSequence& scheduled : step.schedule.sequences) {
    const float* logits = scheduled.wants_logits() ? executor_.logits(row++).data() : nullptr;
    commit_sequence(*scheduled.sequence, scheduled.num_tokens, logits, &events);
  }
  if (events.events_size() > 0) emit(events);
  count_step(step);
  const bool worked = !step.empty();
  update_state(!broken_ && (worked || scheduler_.has_released()));
  return worked || events.events_size() > 0;
}

void Engine::commit_sequence(Sequence& sequence, int num_tokens, const float* logits_row,
                             wire::TokenEvents* events) {
  const int before = sequence.computed;
  sequence.computed += num_tokens;
  const int again = std::min(sequence.computed_before, sequence.computed) - before;
  if (again > 0) metrics_.add(Metric::kRecomputedTokens, again, {{"cause", "preemption"}});
  sequence.computed_before = std::max(sequence.computed_before, sequence.computed);
  publish_pages(sequence, before / memory_.layout().page_tokens);
  if (logits_row == nullptr) return;

  wire::TokenEvent& event = *events->add_events();
  event.set_request_id(sequence.request_id);
  if (!std::exchange(sequence.reported, true)) {
    event.set_cached_tokens(sequence.cached_device + sequence.cached_store);
    event.set_cached_tokens_store(sequence.cached_store);
    event.set_queue_seconds(sequence.queue_seconds);
    const int cached = sequence.cached_device + sequence.cached_store;
    metrics_.add(Metric::kPromptTokens, sequence.prompt_tokens - cached, {{"source", "computed"}});
    metrics_.add(Metric::kPromptTokens, sequence.cached_device, {{"source", "device"}});
    metrics_.add(Metric::kPromptTokens, sequence.cached_store, {{"source", "store"}});
    metrics_.add(Metric::kPrefixHits, sequence.cached_device, {{"tier", "device"}});
    metrics_.add(Metric::kPrefixHits, sequence.cached_store, {{"tier", "store"}});
  }
  sample_token(sequence, {logits_row, static_cast<size_t>(model_.config().vocab_size)}, &event);
  if (event.finish() != wire::FINISH_NONE) finish(sequence);
}

// Pages completed by this step exist from here on. An equal one may have been published by a batch mate: then
// the sequence goes on with that, and its own copy is returned.
void Engine::publish_pages(Sequence& sequence, int first_page) {
  const int page_tokens = memory_.layout().page_tokens;
  const int complete = sequence.computed / page_tokens;
  Scheduler::extend_identities(sequence, complete, page_tokens);
  for (int page = first_page; page < complete; ++page) {
    const Hash128& identity = sequence.identities[page];
    const int first_token = page * page_tokens;
    PageRef shared = pool_.publish(sequence.pages[page], identity,
                                   std::span(sequence.tokens).subspan(first_token, page_tokens));
    if (!(shared == sequence.pages[page])) {
      sequence.pages[page] = std::move(shared);
      sequence.pages_sent = std::min<size_t>(sequence.pages_sent, page);
    }
    if (executor_.can_spill()) {
      spills_.offer({sequence.pages[page].id(), identity, static_cast<uint64_t>(first_token)});
    }
  }
}

void Engine::sample_token(Sequence& sequence, std::span<const float> logits, wire::TokenEvent* event) {
  const SamplingParams& sampling = sequence.sampling;
  const Result<SampledToken> sampled = sample(logits, sampling, sequence.tokens.size());
  if (!sampled.ok()) {
    event->set_finish(wire::FINISH_ERROR);
    event->set_error(sampled.error().message);
    event->set_error_code(static_cast<uint32_t>(sampled.error().code));
    return;
  }
  const int32_t token = sampled->token;
  sequence.tokens.push_back(token);
  event->add_tokens(token);
  if (sampling.logprobs) {
    wire::TokenLogprob& logprob = *event->add_logprobs();
    logprob.set_token(token);
    logprob.set_logprob(sampled->logprob);
    wire::TopLogprobs& top = *event->add_top_logprobs();
    for (const TokenLogprob& entry : sampled->top_logprobs) {
      wire::TokenLogprob& out = *top.add_entries();
      out.set_token(entry.token);
      out.set_logprob(entry.logprob);
    }
  }
  metrics_.add(Metric::kGenerationTokens);
  const auto contains = [&](const std::vector<int32_t>& ids) {
    return std::ranges::find(ids, token) != ids.end();
  };
  if (contains(sampling.stop_token_ids) ||
      (!sampling.ignore_eos && contains(model_.config().eos_token_ids))) {
    event->set_finish(wire::FINISH_STOP);
  } else if (sequence.generated() >= sampling.max_tokens ||
             static_cast<int>(sequence.tokens.size()) >= model_.config().max_positions) {
    event->set_finish(wire::FINISH_LENGTH);
  }
}

void Engine::finish(Sequence& sequence) {
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->live.erase(sequence.request_id);
  }
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
  for (Sequence* sequence : scheduler_.all()) {
    wire::TokenEvent& event = *events.add_events();
    event.set_request_id(sequence->request_id);
    event.set_finish(wire::FINISH_ERROR);
    event.set_error("the replica lost a step: " + error.message);
    event.set_error_code(static_cast<uint32_t>(Code::kUnavailable));
    finish(*sequence);
  }
  update_state(false);
  if (events.events_size() > 0) emit(events);
}

void Engine::emit(const wire::TokenEvents& events) {
  if (ports_.emit) ports_.emit(events);
}

void Engine::update_state(bool work_left) {
  const kvstore::Ledger ledger = pool_.ledger();
  metrics_.set(Metric::kRequestsRunning, static_cast<double>(scheduler_.running()));
  metrics_.set(Metric::kRequestsWaiting, static_cast<double>(scheduler_.waiting()));
  std::lock_guard lock(inbox_->mutex);
  inbox_->state.running = static_cast<uint32_t>(scheduler_.running());
  inbox_->state.waiting = static_cast<uint32_t>(scheduler_.waiting());
  inbox_->state.kv_bytes_used = ledger.used;
  inbox_->state.broken = broken_;
  inbox_->work_left = work_left;
  inbox_->restore_deadline = restores_.next_deadline();
}

void Engine::count_step(const Step& step) {
  metrics_.add(Metric::kPreemptions,
               scheduler_.preemptions() - std::exchange(preemptions_counted_, scheduler_.preemptions()));
  metrics_.add(Metric::kPrefixQueries,
               scheduler_.prefix_queries() - std::exchange(queries_counted_, scheduler_.prefix_queries()));
  if (step.schedule.sequences.empty()) return;
  metrics_.observe(Metric::kStepSeconds, seconds(Clock::now() - step.start));
  metrics_.observe(Metric::kStepTokens, step.schedule.prefill_tokens + step.schedule.decode_tokens);
  metrics_.observe(Metric::kStepSequences, static_cast<double>(step.schedule.sequences.size()));
}

}  // namespace lowkey::worker
