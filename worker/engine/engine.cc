#include "worker/engine/engine.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/log.h"
#include "kvstore/page/page_identity.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

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
  LOWKEY_ASSIGN(sequence, admit(request));
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

Result<std::unique_ptr<Sequence>> Engine::admit(const wire::Submit& request) const {
  auto sequence = std::make_unique<Sequence>();
  LOWKEY_ASSIGN(sampling, SamplingParams::from_wire(request.sampling()));
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
  if (!memory_.fits(request.prompt_size(), sequence->sampling.max_tokens)) {
    return invalid(
        "max_tokens",
        fmt::format("{} tokens (prompt {} + max_tokens {}) need {} of KV cache; the whole of {} "
                    "holds at most {} tokens",
                    total, request.prompt_size(), sequence->sampling.max_tokens,
                    format_bytes(memory_.peak_bytes(request.prompt_size(), sequence->sampling.max_tokens)),
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

void Engine::cancel_all() {
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->cancelled.assign(inbox_->live.begin(), inbox_->live.end());
  }
  inbox_->arrived.notify_one();
}

void Engine::drain() {
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->state.draining = true;
    inbox_->woken = true;
  }
  inbox_->arrived.notify_one();
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
    return inbox_->work_left || inbox_->woken || !inbox_->submitted.empty() || !inbox_->cancelled.empty() ||
           !inbox_->restores.empty();
  });
  inbox_->woken = false;
}

Engine::Step Engine::schedule() {
  Step step;
  if (broken_) return step;
  take_inbox();
  end_restores();
  step.schedule = scheduler_.schedule();
  step.device = pool_.ledger();  // before pages are pinned for copies
  step.used_pages = used_pages();
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

// An archived page is of one bank.
uint64_t Engine::used_pages() {
  uint64_t pages = pool_.used_pages();
  if (!memory_.archive()) return pages;
  for (const Sequence* sequence : scheduler_.all()) pages += sequence->archive.total_pages();
  return pages;
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
    planned.set_first_slot(sequence.next_slot());
    if (sequence.scores) {
      planned.mutable_scores()->set_line(
          static_cast<uint32_t>(sequence.scores.offset() / kvstore::OffsetAllocator::kAlignment));
      planned.mutable_scores()->set_tokens(sequence.prompt_tokens);
    }
    if (scheduled.compacts) plan_compaction(sequence, planned.mutable_compaction());
    planned.set_want_logits(scheduled.wants_logits());
    planned.set_levels(memory_.layout().num_levels);
    sequence.pages_sent = sequence.pages.size();
    sequence.known_to_ranks = true;
  }
  wire::DeviceTier& device = *plan.mutable_device();
  device.set_used_bytes(step.device.used);
  device.set_evictable_bytes(step.device.evictable);
  device.set_free_bytes(step.device.free);
  device.set_slack_bytes(step.device.slack);
  device.set_used_pages(step.used_pages);
  device.set_evictable_pages(step.evictable_pages);
  if (ports_.publish_plan) ports_.publish_plan(plan);
  return executor_.execute(plan);
}

// The prompt as the tokens dial wants it; a block whole.
void Engine::plan_compaction(Sequence& sequence, wire::Compaction* compaction) const {
  const kvstore::ArchiveSpec& archive = *memory_.archive();
  kvstore::TokenBudget budget{.recent = archive.block_tokens,
                              .heavy = std::vector<int>(archive.num_banks(), 0)};
  if (!sequence.prompt_archived) budget = archive.budget(sequence.prompt_tokens);
  compaction->set_recent(budget.recent);
  for (int bank = 0; bank < archive.num_banks(); ++bank) {
    compaction->add_heavy(budget.heavy[bank]);
    compaction->add_pages(budget.archived(bank) / archive.page_tokens());
    for (const kvstore::SlabId slab : sequence.archive.slabs_from(bank, sequence.archive_sent[bank]))
      compaction->add_slabs(slab);
  }
  sequence.archive_sent = sequence.archive.pages();
}

}  // namespace lowkey::worker
