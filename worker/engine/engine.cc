#include "worker/engine/engine.h"

#include <algorithm>

#include "base/trace.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {

using monitoring::Metric;

namespace {

constexpr size_t kMaxPendingSpills = 4096;
constexpr size_t kMaxKnownStored = 1 << 18;   // 16 bytes each, and the tables around them: about 12 MB
constexpr size_t kMaxPrefixEvents = 1 << 16;  // in one step

}  // namespace

void Engine::Inbox::answer(int rank, const wire::RestoreResult& result) {
  {
    std::lock_guard lock(mutex);
    restores.push_back({rank, result.restore_id(), result.sources(), result.bytes(), result.seconds(),
                        result.lossy(), result.first_miss_reason()});
  }
  arrived.notify_one();
}

void Engine::Inbox::add_spilled(const std::vector<SpilledPage>& pages) {
  {
    std::lock_guard lock(mutex);
    spilled.insert(spilled.end(), pages.begin(), pages.end());
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
      num_ranks_(comm.size()),
      pool_(memory),
      executor_(options.executor, model, memory, comm, ports_, metrics),
      restores_(
          {.num_ranks = comm.size(), .store_levels = options.spill_levels, .wait = options.restore_wait},
          pool_, cost_,
          {.send =
               [this](const wire::RestoreCommand& command) {
                 if (ports_.send_restore) ports_.send_restore(command);
                 executor_.pages().restore(command, [inbox = inbox_](const wire::RestoreResult& result) {
                   inbox->answer(0, result);
                 });
               },
           .find = [this](uint64_t id) { return scheduler_.find(id); },
           .queued_tokens = [this] { return scheduler_.queued_tokens(false); },
           .decided =
               [this](const char* decision) {
                 metrics_.add(Metric::kRestoreDecisions, 1, {{"decision", decision}});
               }}),
      grammars_(
          options.token_texts,
          [inbox = inbox_] {
            {
              std::lock_guard lock(inbox->mutex);
              inbox->grammar_ready = true;
            }
            inbox->arrived.notify_one();
          },
          metrics),
      spills_(kMaxPendingSpills, kMaxKnownStored),
      prefix_events_(kMaxPrefixEvents),
      scheduler_(options.scheduler, pool_,
                 ports_.restore ? [this](Sequence& sequence) {
                   const bool nobody = ports_.stores && ports_.stores() == 0;
                   return nobody ? Scheduler::Prefix::kCompute : restores_.begin(sequence);
                 }
                                : Scheduler::FetchPrefix()) {
  executor_.pages().set_on_spilled(
      [inbox = inbox_](const std::vector<SpilledPage>& pages) { inbox->add_spilled(pages); });
  pool_.set_pressure({.drop_levels = options.scheduler.ladder, .min_levels = options.min_levels});
  if (ports_.prefix_events) {
    pool_.on_change = [this](const Hash128& identity, bool added) {
      prefix_events_.changed(identity, added);
    };
  }
  inbox_->state.max_sequence_tokens =
      model.config().widest_window() > 0 && fits(model.config().max_positions, 0)
          ? model.config().max_positions
          : std::min<uint64_t>(memory.max_sequence_tokens(), model.config().max_positions);
  inbox_->state.kv_bytes_capacity = memory.capacity_bytes();
  metrics_.set(Metric::kEngineQueueLimit, static_cast<double>(options.max_waiting));
  update_state(false);
}

Engine::~Engine() = default;

bool Engine::step() {
  const TraceSpan span("step");
  const Step step = schedule();
  const Status status = execute(step);
  return commit(step, status);
}

void Engine::wait_for_work(Deadline deadline) {
  std::unique_lock lock(inbox_->mutex);
  const auto until = inbox_->wake_at ? std::min(deadline.at(), *inbox_->wake_at) : deadline.at();
  inbox_->arrived.wait_until(lock, until, [&] {
    return inbox_->work_left || inbox_->woken || !inbox_->submitted.empty() || !inbox_->cancelled.empty() ||
           !inbox_->restores.empty() || !inbox_->spilled.empty() || inbox_->resync || inbox_->grammar_ready;
  });
  inbox_->woken = false;
}

Engine::Step Engine::schedule() {
  const TraceSpan span("schedule");
  Step step;
  if (broken_) return step;
  take_inbox();
  resume_parked();
  for (const PrefixRestores::Ready& ready : restores_.take_ready()) run_on(ready);
  restores_.refine();
  step.schedule = scheduler_.schedule(cost_.prefill_beside_decodes());
  step.device = pool_.ledger();  // before pages are pinned for copies
  step.used_pages = used_pages();
  step.evictable_pages = pool_.evictable_pages();
  plan_spills(&step);
  return step;
}

// Also at the end of a step: what they will find here belongs into the state that is reported then.
bool Engine::take_submitted() {
  std::vector<std::unique_ptr<Sequence>> submitted;
  {
    std::lock_guard lock(inbox_->mutex);
    submitted.swap(inbox_->submitted);
    inbox_->state.waiting += static_cast<uint32_t>(submitted.size());
  }
  for (auto& sequence : submitted) scheduler_.add(std::move(sequence));
  return !submitted.empty();
}

void Engine::take_inbox() {
  std::vector<uint64_t> cancelled;
  std::vector<RestoreAnswer> answers;
  std::vector<SpilledPage> spilled;
  // Before the answers are taken, and heeded after them: what a store took that is gone must not count.
  const uint64_t stores = ports_.stores ? ports_.stores() : 1;
  {
    std::lock_guard lock(inbox_->mutex);
    cancelled.swap(inbox_->cancelled);
    answers.swap(inbox_->restores);
    inbox_->grammar_ready = false;
    spilled.swap(inbox_->spilled);
    if (std::exchange(inbox_->resync, false)) prefix_events_.resync();
  }
  take_submitted();  // after the cancels: whom they name is there
  for (const uint64_t request_id : cancelled) {
    Sequence* sequence = scheduler_.find_request(request_id);
    if (sequence == nullptr) continue;  // ended meanwhile
    auto event = std::make_unique<wire::TokenEvent>();
    event->set_request_id(request_id);
    event->set_finish(wire::FINISH_CANCELLED);
    sequence->report.to_wire(sequence->prompt_tokens, memory_.layout().num_levels, event->mutable_kv());
    ended_.push_back(std::move(event));
    finish(*sequence);
  }
  for (const RestoreAnswer& answer : answers) {
    if (const auto landed = restores_.on_answer(answer)) on_landed(*landed);
  }
  on_spilled(spilled);
  follow_stores(stores);
}

}  // namespace lowkey::worker
