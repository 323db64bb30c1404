#include "worker/engine/prefix_restores.h"

#include <algorithm>
#include <utility>

#include "transport/wire/lowkey.pb.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

using kvstore::PageRef;

namespace {

// One lookup message names at most this many pages (kvstore/service); longer prefixes compute the rest.
constexpr size_t kMaxPages = 4096;

}  // namespace

PrefixRestores::PrefixRestores(const PrefixRestoreOptions& options, kvstore::PagePool& pool, Send send)
    : options_(options), pool_(&pool), send_(std::move(send)) {}

Scheduler::Prefix PrefixRestores::begin(Sequence& sequence) {
  const int page_tokens = pool_->memory().layout().page_tokens;
  const size_t first = sequence.pages.size();
  const size_t limit = std::min((sequence.tokens.size() - 1) / page_tokens, first + kMaxPages);
  if (first >= limit) return Scheduler::Prefix::kCompute;
  Scheduler::extend_identities(sequence, limit, page_tokens);
  size_t waiting = 0;
  for (const auto& [id, record] : records_) {
    // A store that owes an answer beyond its time is not waited for again until it has given it.
    if (record.sequence_id == 0) return Scheduler::Prefix::kCompute;
    if (record.identities.front() == sequence.identities[first]) return Scheduler::Prefix::kLater;
    ++waiting;
  }
  if (waiting >= options_.max_in_flight) return Scheduler::Prefix::kLater;

  Record record{.sequence_id = sequence.id,
                .first_page = first,
                .answered = std::vector<bool>(options_.num_ranks),
                .outstanding = static_cast<size_t>(options_.num_ranks),
                .deadline = Deadline::in(options_.wait)};
  wire::RestoreCommand command;
  command.set_restore_id(next_id_);
  while (sequence.pages.size() < limit) {
    const size_t index = sequence.pages.size();
    auto page = pool_->allocate(index == 0);
    if (!page) break;
    *command.add_pages() = place_page(*page, sequence.identities[index], index * page_tokens);
    record.identities.push_back(sequence.identities[index]);
    record.pages.push_back(*page);
    sequence.pages.push_back(std::move(*page));
  }
  if (record.pages.empty()) return Scheduler::Prefix::kCompute;
  const auto begin = sequence.tokens.begin() + first * page_tokens;
  record.tokens.assign(begin, begin + record.pages.size() * page_tokens);
  record.restored = record.pages.size();
  records_.emplace(next_id_++, std::move(record));
  send_(command);
  return Scheduler::Prefix::kFetching;
}

std::optional<PrefixRestores::Finished> PrefixRestores::on_result(int rank, uint64_t restore_id, size_t pages,
                                                                  const std::string& reason) {
  const auto found = records_.find(restore_id);
  if (found == records_.end()) return std::nullopt;
  Record& record = found->second;
  if (rank < 0 || rank >= options_.num_ranks || record.answered[rank]) return std::nullopt;
  record.answered[rank] = true;
  if (pages < record.restored) {
    record.restored = pages;
    record.miss_reason = fmt::format("rank {}: {}", rank, reason);
  }
  if (--record.outstanding > 0) return std::nullopt;

  const size_t page_tokens = pool_->memory().layout().page_tokens;
  for (size_t i = 0; i < record.restored; ++i) {
    pool_->publish(record.pages[i], record.identities[i],
                   std::span(record.tokens).subspan(i * page_tokens, page_tokens));
  }
  Finished finished{record.sequence_id, record.first_page, record.restored, std::move(record.identities),
                    std::move(record.miss_reason)};
  while (!record.pages.empty()) record.pages.pop_back();
  records_.erase(found);
  return finished;
}

std::vector<uint64_t> PrefixRestores::expire() {
  std::vector<uint64_t> expired;
  for (auto& [id, record] : records_) {
    if (record.sequence_id == 0 || !record.deadline.passed()) continue;
    expired.push_back(std::exchange(record.sequence_id, 0));
  }
  return expired;
}

std::optional<TimePoint> PrefixRestores::next_deadline() const {
  std::optional<TimePoint> next;
  for (const auto& [id, record] : records_) {
    if (record.sequence_id != 0 && (!next || record.deadline.at() < *next)) next = record.deadline.at();
  }
  return next;
}

}  // namespace lowkey::worker
