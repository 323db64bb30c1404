#include "worker/offline/recipe_sequence.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/check.h"
#include "kvstore/dials/tokens/token_scorer.h"

namespace lowkey::worker {

using kvstore::CachePlan;
using kvstore::TokenScorer;

namespace {

// Points the observer at the one signal that the scorer reads.
void observe(const TokenScorer& scorer, int tokens, float* signal, kernels::TokenObserver& observer) {
  observer.capacity = tokens;
  observer.window_first = scorer.window_first(tokens);
  switch (scorer.signal()) {
    case TokenScorer::Signal::kColumnSums:
      observer.column_sums = signal;
      break;
    case TokenScorer::Signal::kWindowSums:
      observer.window_sums = signal;
      break;
    case TokenScorer::Signal::kKeyNorms:
      observer.key_norms = signal;
      break;
  }
}

}  // namespace

RecipeSequence::RecipeSequence(WindowRunner& runner, const kvstore::ResolvedCache& cache, int read_levels)
    : runner_(runner), spec_(cache.archive_spec()), own_(cache.pages, read_levels) {
  if (cache.spilled) transcoder_.emplace(cache.pages, *cache.spilled);
  for (const kernels::PageLayout& layout : cache.archive) {
    archive_.emplace_back(layout);
    archived_.push_back({.layout = &layout});
  }
}

Status RecipeSequence::prompt(std::span<const int32_t> tokens, int first_scored, const LogitsSink& sink) {
  if (!spec_) {
    LOWKEY_TRY(feed(tokens, first_scored, sink, nullptr));
    if (transcoder_) spill_and_restore();
    return {};
  }
  std::vector<float> signal;
  kernels::TokenObserver observer;
  if (spec_->needs_scores()) {
    signal.resize(archive_.size() * own_.layout().num_kv_heads * tokens.size());
    observe(TokenScorer::of(spec_->tokens->score), static_cast<int>(tokens.size()), signal.data(), observer);
  }
  LOWKEY_TRY(feed(tokens, first_scored, sink, signal.empty() ? nullptr : &observer));
  const TimePoint start = Clock::now();
  move_prompt(signal);
  move_seconds_ = seconds(Clock::now() - start);
  return {};
}

void RecipeSequence::spill_and_restore() {
  const kernels::PageLayout &hot = transcoder_->hot(), &spilled = transcoder_->spilled();
  std::array<std::vector<std::byte>, kernels::kMaxSlabs> memory;
  for (int page = 0; page < own_.slots() / hot.page_tokens; ++page) {
    kvstore::PageTranscoder::Slabs slabs, stored;
    kvstore::PageTranscoder::ConstSlabs from, back;
    for (int i = 0; i < hot.num_levels + (page == 0 && hot.sink_tokens > 0); ++i)
      from[i] = slabs[i] = {own_.slabs()[page * kernels::kMaxSlabs + i], hot.slab_bytes[i]};
    for (int i = 0; i < spilled.num_levels + (page == 0 && spilled.sink_tokens > 0); ++i) {
      memory[i].resize(spilled.slab_bytes[i]);
      back[i] = stored[i] = memory[i];
    }
    transcoder_->spill(from, stored);
    transcoder_->restore(back, slabs);
  }
}

Status RecipeSequence::extend(std::span<const int32_t> tokens, int first_scored, const LogitsSink& sink) {
  while (!tokens.empty()) {
    size_t rows = tokens.size();
    if (spec_) rows = std::min<size_t>(rows, spec_->block_tokens - own_.slots());
    LOWKEY_TRY(feed(tokens.first(rows), first_scored, sink, nullptr));
    if (spec_ && own_.slots() == spec_->block_tokens) move_block();
    tokens = tokens.subspan(rows);
  }
  return {};
}

Status RecipeSequence::feed(std::span<const int32_t> tokens, int first_scored, const LogitsSink& sink,
                            const kernels::TokenObserver* observer) {
  const auto details = [&](kernels::SequenceSlice& slice) {
    slice.archives = spec_ ? archived_.data() : nullptr;
    slice.observer = observer;
  };
  return runner_.feed(own_, tokens, first_scored, sink, nullptr, WindowRunner::kStepRows, details);
}

void RecipeSequence::move_prompt(const std::vector<float>& signal) {
  const int heads = own_.layout().num_kv_heads, tokens = own_.slots();
  const TokenScorer& scorer =
      TokenScorer::of(spec_->tokens ? spec_->tokens->score : kvstore::TokenScore::kColumnSum);
  const kvstore::TokenBudget budget = spec_->budget(tokens);
  for (size_t bank = 0; bank < archive_.size(); ++bank) {
    const kvstore::BankSignal seen{.values = signal.empty() ? nullptr : signal.data() + bank * heads * tokens,
                                   .num_heads = heads,
                                   .stride = tokens,
                                   .tokens = tokens};
    move(static_cast<int>(bank), choose_tokens(scorer, seen, budget.recent, budget.heavy[bank]));
  }
  own_.restart(budget.exact);
}

void RecipeSequence::move_block() {
  const int heads = own_.layout().num_kv_heads, tokens = own_.slots();
  CachePlan all{.kept = tokens, .slots = std::vector<int32_t>(static_cast<size_t>(heads) * tokens)};
  for (int head = 0; head < heads; ++head)
    std::iota(all.slots.begin() + static_cast<ptrdiff_t>(head) * tokens,
              all.slots.begin() + static_cast<ptrdiff_t>(head + 1) * tokens, 0);
  for (size_t bank = 0; bank < archive_.size(); ++bank) move(static_cast<int>(bank), all);
  own_.restart(tokens % own_.layout().page_tokens);
}

void RecipeSequence::move(int bank, const CachePlan& plan) {
  PlainPages& pages = archive_[bank];
  const int before = archived_[bank].num_pages;
  const int after = before + plan.kept / pages.layout().page_tokens;
  pages.grow(after);
  runner_.backend().compact({.from = &own_.layout(),
                             .bank = bank,
                             .slabs = own_.slabs(),
                             .tail = own_.tail(),
                             .num_slots = own_.slots(),
                             .keep = plan.slots.data(),
                             .num_kept = plan.kept,
                             .to = &pages.layout(),
                             .to_bank = 0,
                             .to_slabs = pages.slabs() + static_cast<size_t>(before) * kernels::kMaxSlabs});
  archived_[bank].slabs = pages.slabs();
  archived_[bank].num_pages = after;
}

}  // namespace lowkey::worker
