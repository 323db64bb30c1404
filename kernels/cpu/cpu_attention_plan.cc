// How CpuAttention cuts a step into segments, blocks and tasks.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/page_tile.h"
#include "kernels/cpu/scratch.h"
#include "kernels/ops/attention_window.h"
#include "kernels/ops/exact_pages.h"

namespace lowkey::kernels {
namespace {

// Query rows of a block: enough to pay for decoding a tile, few enough that their state stays in the L2
// cache.
constexpr int kBlockQueries = 192;

// Blocks of few query rows, as decoding has them, wait for memory: their tasks walk all heads of some pages
// together, which lie side by side.
constexpr int kFewQueries = 8;

// Of few rows, so many pages take a microsecond or two, which is what a fork costs.
constexpr int kSerialPages = 16;

}  // namespace

void CpuAttention::plan(const AttentionStep& step) {
  const PageLayout& layout = *step.layout;
  LOWKEY_CHECK(step.num_q_heads % layout.num_kv_heads == 0 &&
                   step.k.cols == layout.num_kv_heads * layout.head_dim &&
                   step.q.cols == step.num_q_heads * layout.head_dim,
               "{} query heads, {} KV heads of {}; q {}, k {} columns", step.num_q_heads, layout.num_kv_heads,
               layout.head_dim, step.q.cols, step.k.cols);
  check_window(step);
  step_ = &step;
  page_tokens_ = layout.page_tokens;
  dim_ = layout.head_dim;
  heads_ = layout.num_kv_heads;
  group_ = step.num_q_heads / heads_;
  max_queries_ = 0;
  rounds_ = in_pairs_ && layout.dtype == DType::kBf16;
  exact_in_pairs_ = rounds_ && dim_ % kTileStep == 0;
  state_stride_ = simd::tile_stride(dim_);
  maps_.clear();
  plans_.clear();
  segments_.clear();
  blocks_.clear();
  for (size_t s = 0; s < step.sequences.size(); ++s) plan_sequence(step.sequences[s], static_cast<int>(s));
  plan_tasks();
  for (Scratch& scratch : scratch_) prepare(scratch);
  if (std::any_of(step.sequences.begin(), step.sequences.end(),
                  [](const SequenceSlice& sequence) { return sequence.observer != nullptr; })) {
    grow(softmax_.maximum, static_cast<size_t>(step.q.rows) * step.num_q_heads);
    grow(softmax_.inverse_sum, static_cast<size_t>(step.q.rows) * step.num_q_heads);
  }
}

void CpuAttention::plan_sequence(const SequenceSlice& sequence, int index) {
  LOWKEY_CHECK(sequence.observer == nullptr ||
                   is_exact(*step_->layout, step_->layout->vector(step_->bank, Side::kKey, 0)),
               "slots of encoded pages are not observed: recipe {}, bank {}", step_->layout->recipe,
               step_->bank);
  LOWKEY_CHECK(sequence.unwanted_rows == 0 || sequence.observer == nullptr, "{} rows of an observed sequence",
               sequence.unwanted_rows);
  SequencePlan plan{.first_segment = static_cast<int>(segments_.size())};
  if (sequence.unwanted_rows < sequence.num_rows) plan_segments(sequence, plan);
  plans_.push_back(plan);

  const int block_tokens = std::max(1, kBlockQueries / (group_ * page_tokens_)) * page_tokens_;
  const int end_slot = sequence.first_slot + sequence.num_rows;
  for (int begin = sequence.first_slot + sequence.unwanted_rows; begin < end_slot;) {
    Block block{.sequence = index, .begin = begin};
    block.end = std::min(end_slot, (begin / block_tokens + 1) * block_tokens);
    for (const Segment& segment : segments_of(block)) block.num_splits += splits_of(block, segment);
    for (block.head = 0; block.head < heads_; ++block.head) blocks_.push_back(block);
    max_queries_ = std::max(max_queries_, queries_of(block));
    begin = block.end;
  }
}

void CpuAttention::plan_segments(const SequenceSlice& sequence, SequencePlan& plan) {
  const ArchivedPages* archive = sequence.archives == nullptr ? nullptr : &sequence.archives[step_->bank];
  if (archive != nullptr && archive->num_pages > 0) {
    const PageLayout& layout = *archive->layout;
    const bool sink = layout.sink_tokens > 0 && archive->slabs[layout.sink_slab()] != nullptr;
    add_segment(layout, archive->bank,
                {.slabs = archive->slabs,
                 .levels = layout.num_levels,
                 .num_pages = archive->num_pages,
                 .masked_tokens = sink ? layout.sink_tokens : 0},
                false);
  }
  const int pages = (sequence.first_slot + sequence.num_rows - 1) / page_tokens_;  // that the last row sees
  const uint8_t* levels = sequence.page_levels;
  const int seen = first_seen(*step_, sequence.first_slot) / page_tokens_;  // pages before it: by no row
  for (int first = seen, end = 0; first < pages; first = end) {
    LOWKEY_CHECK(levels[first] >= 1 && levels[first] <= step_->layout->num_levels,
                 "page {} is to be read at {} of {} levels", first, levels[first], step_->layout->num_levels);
    end = static_cast<int>(
        std::find_if(levels + first, levels + pages, [&](uint8_t l) { return l != levels[first]; }) - levels);
    // Under a window, where splits begin must not depend on which pages are behind it by now.
    const int origin = step_->window == 0 ? first : first / kSplitPages * kSplitPages;
    add_segment(*step_->layout, step_->bank,
                {.slabs = sequence.slabs + static_cast<size_t>(origin) * kMaxSlabs,
                 .levels = levels[first],
                 .first_page = origin,
                 .num_pages = end - origin,
                 .skipped = first - origin,
                 .masked_tokens = first == 0 ? step_->layout->sink_tokens : 0,
                 .own = true},
                first > seen);
  }
  plan.num_segments = static_cast<int>(segments_.size()) - plan.first_segment;
}

// Runs of one sequence have the map of the run before.
void CpuAttention::add_segment(const PageLayout& layout, int bank, Segment segment, bool same_map) {
  segment.map = same_map ? segments_.back().map : maps_.add(layout, bank);
  segments_.push_back(segment);
  for (int head = 0; head < heads_ && !same_map; ++head) {
    state_stride_ = std::max(state_stride_, simd::tile_stride(layout.vector(bank, Side::kValue, head).dim));
  }
}

int CpuAttention::pages_of(const Block& block, const Segment& segment) const {
  if (!segment.own) return segment.num_pages;
  return std::clamp((block.end - 1) / page_tokens_ - segment.first_page, 0, segment.num_pages);
}

int CpuAttention::skipped_of(const Block& block, const Segment& segment) const {
  if (!segment.own || step_->window == 0) return 0;
  const int behind = first_seen(*step_, block.begin) / page_tokens_ - segment.first_page;
  return std::clamp(behind, segment.skipped, segment.num_pages);
}

int CpuAttention::hidden_from(const Block& block, int first) const {
  return step_->window == 0 ? std::numeric_limits<int>::min() / 2 : block.begin - step_->window + 1 - first;
}

int CpuAttention::splits_of(const Block& block, const Segment& segment) const {
  const int pages = pages_of(block, segment), skipped = skipped_of(block, segment);
  return pages <= skipped ? 0 : ceil_div(pages, kSplitPages) - skipped / kSplitPages;
}

int CpuAttention::pages_seen() const {
  int pages = 0;
  for (const Block& block : blocks_) {
    ++pages;  // its own
    for (const Segment& segment : segments_of(block))
      pages += std::max(0, pages_of(block, segment) - skipped_of(block, segment));
  }
  return pages;
}

// Many rows: one task per block where that feeds all threads, else one per split. Few: one per split, for all
// heads where that feeds all threads.
void CpuAttention::plan_tasks() {
  tasks_.clear();
  serial_ = max_queries_ <= kFewQueries && static_cast<int>(blocks_.size()) <= kSerialPages &&
            pages_seen() <= kSerialPages;
  const int threads = serial_ ? 1 : pool_.threads();
  const bool scarce = threads > 1 && static_cast<int>(blocks_.size()) < 4 * threads;
  int few_splits = 0;
  for (size_t i = 0; i < blocks_.size(); i += heads_)
    few_splits += queries_of(blocks_[i]) <= kFewQueries ? blocks_[i].num_splits : 0;
  const int together = few_splits >= 2 * threads || threads == 1 ? heads_ : 1;
  // Queries are prepared once for a task: as few tasks as still share the work evenly.
  const int several = std::max(1, few_splits / (8 * threads));
  size_t floats = 0;
  // The last blocks of a sequence see the most pages: start with them. Heads of the same rows are adjacent.
  for (int first = static_cast<int>(blocks_.size()) - heads_; first >= 0; first -= heads_) {
    const bool few = queries_of(blocks_[first]) <= kFewQueries;
    const int splits = blocks_[first].num_splits;
    const bool in_splits = !serial_ && (few ? splits > 0 : scarce && splits > 1);
    for (int i = first; i < first + heads_; ++i) {
      blocks_[i].in_splits = in_splits;
      blocks_[i].first_state = floats;
      if (in_splits || serial_) floats += splits * state_floats(queries_of(blocks_[i]));
      if (!in_splits) tasks_.push_back({i, 1, kWholeBlock, 0});
    }
    const int count = few ? together : 1;
    const int step = few ? several : 1;
    for (int split = 0; split < splits && in_splits; split += step) {
      for (int i = first; i < first + heads_; i += count)
        tasks_.push_back({i, count, split, std::min(splits, split + step)});
    }
  }
  grow_aligned(shared_states_, floats);
}

void CpuAttention::prepare(Scratch& scratch) const {
  const size_t queries = max_queries_;
  if (static_cast<int>(scratch.heads.size()) < heads_) scratch.heads.resize(heads_);
  grow_aligned(scratch.states, kStatesOfThread * state_floats(max_queries_));
  grow(scratch.mapped_sums, queries * simd::tile_stride(dim_));
}

}  // namespace lowkey::kernels
