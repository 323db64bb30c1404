#include "worker/engine/prefix_restores.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "kvstore/page/page_identity.h"

namespace lowkey::worker {

using kvstore::PageRef;

namespace {

// A prediction that was wrong by more than this factor has lost. Before a restore was measured, it may take
// what computing would, in bounds.
constexpr double kPatience = 2;
constexpr double kMaxSeconds = 30, kMaxUnmeasuredSeconds = 10;

// A progressive start comes after this share of the time that everything would take, or as soon as it can:
// well under half of it is what one notices, and every byte more makes the first tokens better.
constexpr double kFirstShare = 0.4;

// Of the device's memory, one part in so many is left to those who run where their pages can become coarser.
constexpr uint64_t kLeftToOthers = 4;

Duration patience(const PrefixForecast& forecast) {
  const double restore = forecast.restore_seconds();
  const double more = restore > 0 ? std::min(kPatience * restore, kMaxSeconds)
                                  : std::min(forecast.compute_seconds, kMaxUnmeasuredSeconds);
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(more));
}

}  // namespace

PrefixRestores::PrefixRestores(const PrefixRestoreOptions& options, kvstore::PagePool& pool, CostModel& cost,
                               Hooks hooks)
    : options_(options),
      pool_(&pool),
      cost_(&cost),
      hooks_(std::move(hooks)),
      num_levels_(std::min(options.store_levels, pool.memory().layout().num_levels)),
      page_tokens_(pool.memory().layout().page_tokens),
      commands_(options.num_ranks, pool, hooks_.send) {}

Scheduler::Prefix PrefixRestores::begin(Sequence& sequence) {
  if (sequence.min_levels > num_levels_ || (sequence.exact_only && lossy_))
    return Scheduler::Prefix::kCompute;
  const Missing missing = survey(sequence);
  const bool starts = missing.ready == missing.limit;
  if (starts && !missing.coarse) return Scheduler::Prefix::kCompute;
  if (commands_.late() > 0) {
    sequence.report.note("a store owes an answer beyond its time: it was not asked");
    return Scheduler::Prefix::kCompute;
  }
  if (starts) {
    const PrefixForecast forecast = cost_->forecast(missing.question);
    if (!forecast.stepwise && waits_.size() < options_.max_waiting) return fetch(sequence, missing, forecast);
    start_refining(sequence);
    return Scheduler::Prefix::kCompute;
  }
  if (missing.in_flight || waits_.size() >= options_.max_waiting) return wait(sequence);
  const PrefixForecast forecast = cost_->decide(missing.question);
  hooks_.decided(to_string(forecast.decision));
  sequence.report.decided(forecast);
  if (forecast.decision != Decision::kRecompute) return fetch(sequence, missing, forecast);
  return recompute(sequence, missing, forecast);
}

Scheduler::Prefix PrefixRestores::wait(Sequence& sequence) const {
  if (!std::exchange(sequence.waited, true)) {
    hooks_.decided("wait");
    sequence.report.note("waited in the queue for restores of other requests");
  }
  return Scheduler::Prefix::kLater;
}

Scheduler::Prefix PrefixRestores::recompute(Sequence& sequence, const Missing& missing,
                                            const PrefixForecast& forecast) {
  sequence.report.note(fmt::format("{} tokens are computed: {:.3f} s against {:.3f} s to restore them",
                                   missing.question.tokens, forecast.compute_seconds,
                                   forecast.restore_seconds()));
  sequence.recomputing = {.until = static_cast<int>(missing.limit) * page_tokens_,
                          .begin = Clock::now(),
                          .restore_seconds = forecast.restore_seconds()};
  start_refining(sequence);
  return Scheduler::Prefix::kCompute;
}

PrefixRestores::Missing PrefixRestores::survey(Sequence& sequence) const {
  Missing missing{.hits = sequence.pages.size(), .ready = sequence.ready_pages()};
  missing.limit = std::min((sequence.tokens.size() - 1) / page_tokens_, missing.hits + kMaxPages);
  Scheduler::extend_identities(sequence, missing.limit, page_tokens_);
  std::array<uint64_t, kernels::kMaxLevels + 1> bytes{};  // of the first levels of a page
  for (int level = 0; level < num_levels_; ++level)
    bytes[level + 1] = bytes[level] + pool_->memory().layout().slab_bytes[level];
  const auto add = [&](int levels, uint64_t pages) {
    missing.question.first_bytes += pages * (bytes[std::max(levels, sequence.min_levels)] - bytes[levels]);
    missing.question.all_bytes += pages * (bytes[num_levels_] - bytes[levels]);
  };
  for (const PageRef& page : sequence.pages) {
    if (!page || page.lossy() || lossy_ || page.levels() >= num_levels_) continue;
    missing.coarse = true;
    add(page.levels(), 1);
  }
  missing.needed_from = sequence.first_seen_page(missing.limit * page_tokens_);
  add(0, missing.limit - std::clamp(missing.needed_from, missing.hits, missing.limit));
  missing.question.tokens = (missing.limit - missing.ready) * page_tokens_;
  missing.question.queued_tokens = hooks_.queued_tokens();
  missing.question.queued_bytes = commands_.bytes_in_flight();
  if (missing.ready < missing.hits) {
    const PageRef& next = sequence.pages[missing.ready];
    missing.in_flight = next && commands_.busy(next.id());
  } else if (missing.ready < missing.limit) {
    missing.in_flight = commands_.fetching(sequence.identities[missing.ready]);
  }
  return missing;
}

Scheduler::Prefix PrefixRestores::fetch(Sequence& sequence, const Missing& missing,
                                        const PrefixForecast& forecast) {
  const bool fewest = forecast.decision == Decision::kProgressive ||
                      is_short((missing.limit - missing.hits) * pool_->page_bytes(false));
  std::vector<uint8_t> levels(missing.limit, static_cast<uint8_t>(num_levels_));
  if (fewest) levels = first_levels(sequence, missing, forecast);
  Wait wait{.levels = *std::ranges::max_element(levels), .ready = missing.ready, .forecast = forecast};
  while (sequence.pages.size() < missing.limit) {
    if (sequence.pages.size() < missing.needed_from) {
      sequence.pages.emplace_back();
      continue;
    }
    auto page = pool_->allocate(sequence.pages.empty(), levels[sequence.pages.size()]);
    if (!page) break;
    pool_->set_levels(*page, 0);
    sequence.pages.push_back(std::move(*page));
  }
  wait.sources.resize(sequence.pages.size());
  wait.commands = raise(sequence, levels, false);
  if (wait.commands == 0) {
    start_refining(sequence);
    return Scheduler::Prefix::kCompute;
  }
  wait.first_levels = std::move(levels);
  wait.deadline = Deadline::in(options_.wait + patience(forecast));
  waits_.insert_or_assign(sequence.id, std::move(wait));
  return Scheduler::Prefix::kFetching;
}

// Whether so many bytes more would press those who run: pages that are on their way cannot become coarser.
bool PrefixRestores::is_short(uint64_t bytes) const {
  const uint64_t left = pool_->memory().capacity_bytes() / kLeftToOthers;
  return pool_->pressure().drop_levels && pool_->available_bytes() < bytes + left;
}

// With how many levels of each page the sequence starts: those that it must have, and one by one more of the
// pages that matter most, in the time that is left.
std::vector<uint8_t> PrefixRestores::first_levels(const Sequence& sequence, const Missing& missing,
                                                  const PrefixForecast& forecast) const {
  const auto fewest = static_cast<uint8_t>(sequence.min_levels);
  std::vector<uint8_t> levels(missing.limit, fewest);
  if (forecast.decision != Decision::kProgressive) return levels;
  const double until = std::max(forecast.first_seconds, kFirstShare * forecast.all_seconds);
  const uint64_t most = cost_->bytes_within(until, missing.question.queued_bytes);
  uint64_t bytes = missing.question.first_bytes;
  for (uint8_t level = fewest; level < num_levels_; ++level) {
    for (size_t rank = 0; rank < missing.limit; ++rank) {
      const size_t page = page_of_rank(rank, missing.limit);
      if (page < sequence.pages.size()) {  // it has it, or needs nothing of it
        if (!sequence.pages[page] || sequence.pages[page].levels() > level) continue;
      } else if (page < missing.needed_from) {
        continue;
      }
      bytes += pool_->memory().layout().slab_bytes[level];
      if (bytes > most) return levels;
      levels[page] = level + 1;
    }
  }
  return levels;
}

// Asks for what pages lack of these `levels`; returns the number of commands.
size_t PrefixRestores::raise(Sequence& sequence, std::span<const uint8_t> levels, bool gaps) {
  std::map<std::pair<int, int>, std::vector<size_t>> wanted;  // (from, to) -> pages
  for (size_t i = 0; i < sequence.pages.size(); ++i) {
    const PageRef& page = sequence.pages[i];
    if (!page) continue;  // behind the window
    const int from = page.levels(), to = levels[i];
    if (from >= to || page.lossy() || commands_.busy(page.id())) continue;
    if (from > 0 && (lossy_ || !pool_->grow(page, to))) continue;
    wanted[{from, to}].push_back(i);
  }
  for (const auto& [range, pages] : wanted) {
    const auto [from, to] = range;
    send(sequence, pages, {.waited = true, .from = from, .to = to, .gaps = gaps || from > 0});
  }
  return wanted.size();
}

void PrefixRestores::send(const Sequence& sequence, const std::vector<size_t>& pages, PageFetch fetch) {
  fetch.sequence_id = sequence.id;
  for (const size_t i : pages) {
    PageFetch::Page& page = fetch.pages.emplace_back(i, sequence.pages[i], sequence.identities[i]);
    const auto tokens = std::span(sequence.tokens).subspan(i * page_tokens_, page_tokens_);
    page.tokens_hash = kvstore::tokens_hash(tokens);
    if (fetch.from == 0) page.tokens.assign(tokens.begin(), tokens.end());
  }
  commands_.send(std::move(fetch));
}

std::optional<RestoreCommands::Landed> PrefixRestores::on_answer(const RestoreAnswer& answer) {
  auto landed = commands_.on_answer(answer);
  if (!landed) return std::nullopt;
  // Those that nobody waits for share the link with each other: only one alone tells what it can do.
  if (landed->bytes > 0 && (landed->fetch.waited || landed->queued == 0))
    cost_->on_restore(landed->bytes + landed->queued, landed->seconds);
  if (landed->bytes == 0 && landed->fetch.waited) cost_->on_failed_restore(landed->seconds);
  lossy_ |= landed->lossy;
  const PageFetch& fetch = landed->fetch;
  if (!fetch.waited) {
    const auto refined = std::ranges::find(refining_, fetch.sequence_id, &Refinement::sequence_id);
    if (refined != refining_.end() && !landed->reason.empty()) refined->reason = landed->reason;
    return landed;
  }
  const auto found = waits_.find(fetch.sequence_id);
  if (landed->late || found == waits_.end()) return landed;
  Sequence& sequence = *hooks_.find(fetch.sequence_id);
  Wait& wait = found->second;
  for (size_t i = 0; i < fetch.pages.size(); ++i) {
    // Published already by somebody faster: theirs is shared.
    sequence.pages[fetch.pages[i].index] = fetch.pages[i].page;
    if (landed->sources[i] != 0) wait.sources[fetch.pages[i].index] = landed->sources[i];
  }
  if (!landed->reason.empty()) wait.reason = landed->reason;
  --wait.commands;
  return landed;
}

std::vector<PrefixRestores::Ready> PrefixRestores::take_ready() {
  std::vector<Ready> ready;
  for (auto it = waits_.begin(); it != waits_.end();) {
    Wait& wait = it->second;
    Sequence& sequence = *hooks_.find(it->first);
    const bool late = wait.commands > 0 && wait.deadline.passed();
    if (wait.commands == 0 && commands_.late() == 0 && answers(wait)) ask_again(sequence, wait);
    if (wait.commands > 0 && !late) {
      ++it;
      continue;
    }
    ready.push_back(finish(sequence, wait, late));
    it = waits_.erase(it);
  }
  return ready;
}

// Something has come, or the answer that nothing does.
bool PrefixRestores::answers(const Wait& wait) const {
  const bool came = std::ranges::any_of(wait.sources, [](char source) { return source != 0; });
  return came || Clock::now() - wait.begin < options_.wait / 4;
}

// For what was not had at once.
void PrefixRestores::ask_again(Sequence& sequence, Wait& wait) {
  if (wait.levels > sequence.min_levels) {
    // Some pages are not whole in the stores: the levels that must be are asked for alone.
    wait.levels = sequence.min_levels;
    wait.commands = raise(sequence, std::vector<uint8_t>(sequence.pages.size(), wait.levels), false);
  }
  const bool gap = sequence.ready_pages() + 1 < sequence.pages.size() && sequence.window == 0;
  if (wait.commands > 0 || !gap || wait.deadline.passed() || std::exchange(wait.asked_behind, true)) return;
  wait.commands = raise(sequence, wait.first_levels, true);
}

PrefixRestores::Ready PrefixRestores::finish(Sequence& sequence, const Wait& wait, bool late) {
  if (late) commands_.give_up(sequence.id);
  const size_t ready = sequence.ready_pages();
  sequence.keep_pages(ready);
  sequence.computed = static_cast<int>(ready) * page_tokens_;
  sequence.sources = wait.sources;
  const auto came = std::string_view(wait.sources).substr(0, ready).substr(std::min(wait.ready, ready));
  const int disk_pages = static_cast<int>(std::ranges::count(came, '\2'));
  start_refining(sequence);
  return {.sequence_id = sequence.id,
          .restored_tokens = static_cast<int>(came.size()) * page_tokens_,
          .disk_tokens = disk_pages * page_tokens_,
          .late = late,
          .seconds = seconds(Clock::now() - wait.begin),
          .forecast = wait.forecast,
          .reason = wait.reason};
}

std::optional<TimePoint> PrefixRestores::next_deadline() const {
  std::optional<TimePoint> next;
  for (const auto& [id, wait] : waits_) {
    if (!next || wait.deadline.at() < *next) next = wait.deadline.at();
  }
  return next;
}

void PrefixRestores::forget(uint64_t sequence_id) {
  waits_.erase(sequence_id);
  std::erase_if(refining_, [&](const Refinement& r) { return r.sequence_id == sequence_id; });
}

}  // namespace lowkey::worker
