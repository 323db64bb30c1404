// The executor's part in the tokens dial: who is observed while a prompt is computed, and the move of tokens
// into archived pages. Every rank chooses for its own heads, from its own scores; how many, the leader has
// said.
#include <algorithm>
#include <array>
#include <cstring>

#include "kvstore/dials/tokens/cache_plan.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/executor.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

using kernels::kMaxSlabs;
using kvstore::TokenScorer;

namespace {

const TokenScorer& scorer_of(const kvstore::ArchiveSpec& archive) {
  return TokenScorer::of(archive.tokens ? archive.tokens->score : kvstore::TokenScore::kColumnSum);
}

}  // namespace

// Makes the archive's tables when a sequence starts, and points the observer at its room.
Status Executor::observe(const wire::PlannedSequence& planned, Table* table) const {
  const kvstore::ArchiveSpec& archive = *memory_.archive();
  if (table->archives.empty()) {
    table->archive_slabs.resize(archive.num_banks());
    for (const kernels::PageLayout& layout : archive.layouts) table->archives.push_back({.layout = &layout});
  }
  if (!planned.has_scores()) return {};
  const uint64_t offset = uint64_t{planned.scores().line()} * kvstore::OffsetAllocator::kAlignment;
  const uint64_t bytes = memory_.score_bytes(planned.scores().tokens());
  if (bytes == 0 || offset + bytes > memory_.score_capacity_bytes() ||
      planned.first_slot() + planned.tokens_size() > planned.scores().tokens()) {
    return bad_plan(fmt::format("sequence {}: scores of {} tokens at {}", planned.sequence_id(),
                                planned.scores().tokens(), offset));
  }
  float* room = table->scores = reinterpret_cast<float*>(memory_.score_address(offset));
  if (planned.first_position() == 0) clear(memory_.score_address(offset), bytes);
  const TokenScorer& scorer = scorer_of(archive);
  const int tokens = static_cast<int>(planned.scores().tokens());
  table->observer = {.capacity = tokens, .window_first = scorer.window_first(tokens)};
  switch (scorer.signal()) {
    case TokenScorer::Signal::kColumnSums:
      table->observer.column_sums = room;
      break;
    case TokenScorer::Signal::kWindowSums:
      table->observer.window_sums = room;
      break;
    case TokenScorer::Signal::kKeyNorms:
      table->observer.key_norms = room;
      break;
  }
  return {};
}

void Executor::clear(std::byte* room, uint64_t bytes) const {
  if (options_.backend->host_accessible()) {
    std::memset(room, 0, bytes);
    return;
  }
  static constexpr std::array<std::byte, 64 << 10> kZeros{};
  for (uint64_t at = 0; at < bytes; at += kZeros.size())
    options_.backend->upload(std::span(kZeros).first(std::min<uint64_t>(kZeros.size(), bytes - at)),
                             room + at);
}

// The scores of one bank, where the host can read them until the next call.
const float* Executor::signal_of(const Table& table, int bank, size_t floats) {
  const float* scores = table.scores + bank * floats;
  if (options_.backend->host_accessible()) return scores;
  signal_.resize(floats);
  options_.backend->download(reinterpret_cast<const std::byte*>(scores),
                             std::as_writable_bytes(std::span(signal_)));
  return signal_.data();
}

// The sequence's own tokens leave: into the pages that the plan names, and what is left to the front of the
// tail.
Status Executor::compact(const wire::PlannedSequence& planned, Table* table) {
  const wire::Compaction& compaction = planned.compaction();
  const kvstore::ArchiveSpec& archive = *memory_.archive();
  const TokenScorer& scorer = scorer_of(archive);
  const int heads = memory_.layout().num_kv_heads;
  const int slots = static_cast<int>(planned.first_slot()) + planned.tokens_size();
  LOWKEY_TRY(add_archived(compaction, table));
  for (int bank = 0; bank < archive.num_banks(); ++bank) {
    const uint64_t kept = uint64_t{compaction.recent()} + compaction.heavy(bank);
    const bool chosen = compaction.heavy(bank) > 0 && kept < static_cast<uint64_t>(slots);
    if (kept > static_cast<uint64_t>(slots) || kept / archive.page_tokens() != compaction.pages(bank) ||
        (chosen && !planned.has_scores())) {
      return bad_plan(fmt::format("sequence {}: {} + {} of {} tokens into {} pages", planned.sequence_id(),
                                  compaction.recent(), compaction.heavy(bank), slots,
                                  compaction.pages(bank)));
    }
    const auto recent = static_cast<int>(compaction.recent()),
               heavy = static_cast<int>(compaction.heavy(bank));
    const auto pages = static_cast<int>(compaction.pages(bank));
    kvstore::BankSignal signal{.num_heads = heads, .tokens = slots};
    if (planned.has_scores()) {
      signal.stride = table->observer.capacity;
      signal.values = signal_of(*table, bank, size_t(heads) * signal.stride);
    }
    const kvstore::CachePlan plan = kvstore::choose_tokens(scorer, signal, recent, heavy);
    kernels::ArchivedPages& archived = table->archives[bank];
    archived.slabs = table->archive_slabs[bank].data();
    options_.backend->compact({.from = &memory_.layout(),
                               .bank = bank,
                               .slabs = table->slabs.data(),
                               .tail = memory_.tail_address(planned.tail()),
                               .num_slots = slots,
                               .keep = plan.slots.data(),
                               .num_kept = plan.kept,
                               .to = archived.layout,
                               .to_bank = archived.bank,
                               .to_slabs = archived.slabs + size_t(archived.num_pages) * kMaxSlabs});
    archived.num_pages += pages;
  }
  table->slabs.clear();
  table->page_levels.clear();
  return {};
}

// Enters the plan's new archived pages.
Status Executor::add_archived(const wire::Compaction& compaction, Table* table) const {
  const int banks = memory_.archive()->num_banks();
  if (compaction.heavy_size() != banks || compaction.pages_size() != banks)
    return bad_plan(fmt::format("a compaction of {} banks", compaction.pages_size()));
  int next = 0;
  for (int bank = 0; bank < banks; ++bank) {
    std::vector<std::byte*>& slabs = table->archive_slabs[bank];
    const size_t end = table->archives[bank].num_pages + compaction.pages(bank);
    for (size_t page = table->archives[bank].num_pages; page < end; ++page) {
      slabs.resize((page + 1) * kMaxSlabs, nullptr);
      const int count = memory_.archive_slabs_of_page(bank, page);
      if (next + count > compaction.slabs_size()) return bad_plan("an archived page lacks slabs");
      for (int slab = 0; slab < count; ++slab, ++next) {
        const kvstore::SlabPool& pool = memory_.archive_slabs(bank, slab);
        if (compaction.slabs(next) >= pool.max_slabs()) return bad_plan("a slab beyond this rank's memory");
        slabs[page * kMaxSlabs + slab] = pool.address(compaction.slabs(next));
      }
    }
  }
  if (next != compaction.slabs_size()) return bad_plan("slabs of no archived page");
  return {};
}

}  // namespace lowkey::worker
