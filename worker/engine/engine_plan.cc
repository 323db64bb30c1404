// The second line of a step: what was scheduled as a plan that every rank can execute.
#include <algorithm>

#include "base/trace.h"
#include "kvstore/page/page_identity.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/engine.h"
#include "worker/engine/plan_codec.h"

namespace lowkey::worker {

using monitoring::Metric;

// An archived page is of one bank.
uint64_t Engine::used_pages() const {
  uint64_t pages = pool_.used_pages();
  if (!memory_.archive()) return pages;
  for (const auto& [id, sequence] : scheduler_.sequences()) pages += sequence->archive.total_pages();
  return pages;
}

Status Engine::execute(const Step& step) {
  if (step.empty()) return {};
  const TraceSpan span("execute");
  wire::StepPlan plan;
  plan.set_step(++step_number_);
  for (const uint64_t id : step.schedule.released) plan.add_released(id);
  for (size_t i = 0; i < step.spills.size(); ++i) {
    wire::PlacedPage& page = *plan.add_spills();
    page = place_page(step.pinned[i], step.spills[i].identity, step.spills[i].first_token,
                      kvstore::tokens_hash(pool_.tokens(step.spills[i].page)));
    // Upper levels may be on their way, or are not for stores.
    for (int level = std::min(options_.spill_levels, step.pinned[i].levels()); level < num_levels(); ++level)
      page.set_slabs(level, kvstore::kNoSlab);
  }
  PagesRead read;
  for (const ScheduledSequence& scheduled : step.schedule.sequences) {
    Sequence& sequence = *scheduled.sequence;
    wire::PlannedSequence& planned = *plan.add_sequences();
    planned.set_sequence_id(sequence.id);
    planned.set_tail(sequence.tail.id());
    planned.set_first_position(sequence.computed);
    const auto first = sequence.tokens.begin() + sequence.computed;
    planned.mutable_tokens()->Add(first, first + scheduled.num_tokens);
    plan_pages(sequence, scheduled.num_tokens, &planned, &read);
    planned.set_first_slot(sequence.next_slot());
    if (sequence.scores) {
      planned.mutable_scores()->set_line(
          static_cast<uint32_t>(sequence.scores.offset() / kvstore::OffsetAllocator::kAlignment));
      planned.mutable_scores()->set_tokens(sequence.prompt_tokens);
    }
    if (scheduled.compacts) plan_compaction(sequence, planned.mutable_compaction());
    planned.set_want_logits(scheduled.wants_logits());
    planned.set_all_logits(scheduled.all_logits);
    sequence.known_to_ranks = true;
  }
  count_pages_read(read);
  wire::DeviceTier& device = *plan.mutable_device();
  device.set_used_bytes(step.device.used);
  device.set_evictable_bytes(step.device.evictable);
  device.set_free_bytes(step.device.free);
  device.set_slack_bytes(step.device.slack);
  device.set_used_pages(step.used_pages);
  device.set_evictable_pages(step.evictable_pages);
  if (ports_.publish_plan) ports_.publish_plan(plan);
  return executor_.execute(plan, plan_draws(step.schedule));
}

// The pages as the ranks will read them; what that means for the tokens computed now.
void Engine::plan_pages(Sequence& sequence, int num_tokens, wire::PlannedSequence* planned, PagesRead* read) {
  const int levels = memory_.layout().num_levels;
  PageTable& table = sequence.table;
  table.plan(sequence.pages, memory_.layout(), pool_.level_changes(), planned);
  const int pages = (sequence.next_slot() + num_tokens - 1) / memory_.layout().page_tokens;
  const auto by_levels = table.by_levels(pages, levels);
  for (int i = 1; i <= levels; ++i) read->at_levels[i] += by_levels[i];
  if (table.coarse_pages() == 0) return;
  RequestReport& report = sequence.report;
  const int lowest = table.lowest_levels();
  report.lowest_levels = report.lowest_levels == 0 ? lowest : std::min(report.lowest_levels, lowest);
  if (num_tokens == sequence.remaining()) ++report.coarse_tokens;  // one is sampled
  read->coarse_tokens += num_tokens;
  if (sequence.tainted_from != Sequence::kUntainted) return;
  sequence.tainted_from = sequence.computed;
  report.note(fmt::format("from token {} on {} of its pages were read coarse, at {} of {} levels at least",
                          sequence.computed, table.coarse_pages(), lowest, levels));
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
