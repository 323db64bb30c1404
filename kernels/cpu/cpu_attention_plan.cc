// How CpuAttention cuts a step into segments, blocks and tasks.
#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/page_tile.h"
#include "kernels/cpu/scratch.h"
#include "kernels/ops/exact_pages.h"

namespace lowkey::kernels {
namespace {

// Query rows of a block: enough to pay for decoding a tile, few enough that their state stays in the L2
// cache.
constexpr int kBlockQueries = 192;

}  // namespace

void CpuAttention::plan(const AttentionStep& step) {
  const PageLayout& layout = *step.layout;
  LOWKEY_CHECK(step.num_q_heads % layout.num_kv_heads == 0 &&
                   step.k.cols == layout.num_kv_heads * layout.head_dim &&
                   step.q.cols == step.num_q_heads * layout.head_dim,
               "{} query heads, {} KV heads of {}; q {}, k {} columns", step.num_q_heads, layout.num_kv_heads,
               layout.head_dim, step.q.cols, step.k.cols);
  step_ = &step;
  page_tokens_ = layout.page_tokens;
  dim_ = layout.head_dim;
  heads_ = layout.num_kv_heads;
  group_ = step.num_q_heads / heads_;
  max_queries_ = 0;
  exact_tokens_ = page_tokens_;
  state_stride_ = simd::tile_stride(dim_);
  maps_.clear();
  plans_.clear();
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
  SequencePlan plan;
  LOWKEY_CHECK(sequence.observer == nullptr ||
                   is_exact(*step_->layout, step_->layout->vector(step_->bank, Side::kKey, 0)),
               "slots of encoded pages are not observed: recipe {}, bank {}", step_->layout->recipe,
               step_->bank);
  const auto add = [&](const PageLayout& layout, int bank, const Segment& segment) {
    plan.segments[plan.num_segments] = segment;
    plan.segments[plan.num_segments++].map = maps_.add(layout, bank);
    exact_tokens_ = std::max(exact_tokens_, segment.masked_tokens);
    for (int head = 0; head < heads_; ++head) {
      state_stride_ = std::max(state_stride_, simd::tile_stride(layout.vector(bank, Side::kValue, head).dim));
    }
  };
  const ArchivedPages* archive = sequence.archives == nullptr ? nullptr : &sequence.archives[step_->bank];
  if (archive != nullptr && archive->num_pages > 0) {
    const PageLayout& layout = *archive->layout;
    const bool sink = layout.sink_tokens > 0 && archive->slabs[layout.sink_slab()] != nullptr;
    add(layout, archive->bank,
        {.slabs = archive->slabs,
         .levels = layout.num_levels,
         .num_pages = archive->num_pages,
         .masked_tokens = sink ? layout.sink_tokens : 0});
  }
  add(*step_->layout, step_->bank,
      {.slabs = sequence.slabs,
       .levels = sequence.levels,
       .masked_tokens = step_->layout->sink_tokens,
       .own = true});
  plans_.push_back(plan);

  const int block_tokens = std::max(1, kBlockQueries / (group_ * page_tokens_)) * page_tokens_;
  const int end_slot = sequence.first_slot + sequence.num_rows;
  for (int begin = sequence.first_slot; begin < end_slot;) {
    Block block{.sequence = index, .begin = begin};
    block.end = std::min(end_slot, (begin / block_tokens + 1) * block_tokens);
    for (int i = 0; i < plan.num_segments; ++i) block.num_splits += splits_of(block, plan.segments[i]);
    for (block.head = 0; block.head < heads_; ++block.head) blocks_.push_back(block);
    max_queries_ = std::max(max_queries_, queries_of(block));
    begin = block.end;
  }
}

int CpuAttention::splits_of(const Block& block, const Segment& segment) const {
  return ceil_div(segment.own ? (block.end - 1) / page_tokens_ : segment.num_pages, kSplitPages);
}

// One task per block where that feeds all threads, else one per split.
void CpuAttention::plan_tasks() {
  state_floats_ = static_cast<size_t>(max_queries_) * (2 + state_stride_);
  tasks_.clear();
  const bool split = pool_.threads() > 1 && static_cast<int>(blocks_.size()) < 4 * pool_.threads();
  size_t num_states = 0;
  // The last blocks of a sequence see the most pages: start with them.
  for (int i = static_cast<int>(blocks_.size()) - 1; i >= 0; --i) {
    Block& block = blocks_[i];
    if (!split || block.num_splits <= 1) {
      tasks_.push_back({i, kWholeBlock});
      continue;
    }
    block.first_state = num_states;
    num_states += block.num_splits;
    for (int s = 0; s < block.num_splits; ++s) tasks_.push_back({i, s});
  }
  grow(shared_states_, num_states * state_floats_);
}

void CpuAttention::prepare(Scratch& scratch) const {
  const size_t queries = max_queries_;
  grow(scratch.queries, queries * dim_);
  grow(scratch.states, kStatesOfThread * state_floats_);
  grow(scratch.mapped_sums, queries * simd::tile_stride(dim_));
  grow(scratch.key_tile, simd::tile_floats(Side::kKey, exact_tokens_, dim_));
  grow(scratch.value_tile, simd::tile_floats(Side::kValue, exact_tokens_, dim_));
  grow(scratch.scores, queries * simd::tile_stride(exact_tokens_));
}

}  // namespace lowkey::kernels
