#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/scratch.h"

namespace lowkey::kernels {
namespace {

PageRun part_of(const PageRun& run, int page, int count, int page_tokens) {
  PageRun part = run;
  part.slabs += static_cast<size_t>(page) * kMaxSlabs;
  part.num_pages = std::min(count, run.num_pages - page);
  part.pages_after += run.num_pages - page - part.num_pages;
  if (page > 0) part.masked_tokens = 0;
  part.hidden -= page * page_tokens;
  part.skipped = std::clamp(run.skipped - page, 0, part.num_pages);
  std::copy_n(run.first_query + page, part.num_pages, part.first_query);
  return part;
}

}  // namespace

CpuAttention::CpuAttention(ComputePool& pool, bool in_pairs)
    : pool_(pool), in_pairs_(in_pairs), writer_(pool), scratch_(pool.threads()) {}

void CpuAttention::attend(const AttentionStep& step) {
  plan(step);
  writer_.write(step);
  if (serial_) {
    for (const Task& task : tasks_) run_task(task, scratch_[0]);
  } else {
    pool_.parallel_for(static_cast<int>(tasks_.size()),
                       [&](int task, int thread) { run_task(tasks_[task], scratch_[thread]); });
  }
  if (std::any_of(blocks_.begin(), blocks_.end(), [](const Block& block) { return block.in_splits; })) {
    pool_.parallel_for(static_cast<int>(blocks_.size()), [&](int block, int thread) {
      if (blocks_[block].in_splits) finish_block(blocks_[block], true, scratch_[thread]);
    });
  }
  observe();
  if (step.last_reader) writer_.save_tails();
  step_ = nullptr;
}

AttentionState CpuAttention::state_at(std::vector<float>& memory, size_t first, size_t index,
                                      int queries) const {
  float* base = aligned_begin(memory) + first + index * state_floats(queries);
  return {base, base + queries, base + state_header(queries), state_stride_};
}

void CpuAttention::clear(const AttentionState& state, int queries) const {
  std::fill_n(state.maximum, queries, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, queries, 0.0f);
  std::fill_n(state.acc, static_cast<size_t>(queries) * state.stride, 0.0f);
}

void CpuAttention::merge(const AttentionState& into, const AttentionState& from, int queries) const {
  for (int i = 0; i < queries; ++i) {
    simd::merge_row(into.maximum[i], into.sum[i], into.acc + static_cast<size_t>(i) * into.stride,
                    from.maximum[i], from.sum[i], from.acc + static_cast<size_t>(i) * from.stride,
                    into.stride);
  }
}

void CpuAttention::run_task(const Task& task, Scratch& scratch) {
  if (task.split != kWholeBlock) return run_splits(task, scratch);
  finish_block(blocks_[task.block], false, scratch);
}

// Some splits of some heads, a stretch of pages after the other.
void CpuAttention::run_splits(const Task& task, Scratch& scratch) {
  const Block& first = blocks_[task.block];
  const std::span<const Segment> segments = segments_of(first);
  const int queries = queries_of(first);
  for (int i = 0; i < task.count; ++i) load_queries(blocks_[task.block + i], scratch.heads[i]);
  int prepared = -1, before = 0;  // splits of earlier segments
  for (int split = task.split, index = 0; split < task.end_split; ++split) {
    while (split - before >= splits_of(first, segments[index])) before += splits_of(first, segments[index++]);
    const Segment& segment = segments[index];
    int stretch = 1;
    for (int i = 0; i < task.count; ++i) {
      const Block& block = blocks_[task.block + i];
      clear(state_at(shared_states_, block.first_state, split, queries), queries);
      if (prepared != index) prepare_segment(block, segment, scratch.heads[i]);
      stretch = std::max(stretch, scratch.heads[i].pages->stretch());
    }
    prepared = index;
    if (task.count == 1) stretch = kMaxRunPages;
    const PageRun run = run_of(first, segment, split - before);
    for (int page = 0; page < run.num_pages; page += stretch) {
      const PageRun part = part_of(run, page, stretch, page_tokens_);
      for (int i = 0; i < task.count; ++i) {
        scratch.heads[i].pages->see(
            part, state_at(shared_states_, blocks_[task.block + i].first_state, split, queries));
      }
    }
  }
}

// Everything of a block that its split tasks have not done, in the order that makes its bits.
void CpuAttention::finish_block(const Block& block, bool splits_are_done, Scratch& scratch) {
  const int queries = queries_of(block);
  const auto state_of_thread = [&](int i) { return state_at(scratch.states, 0, i, queries); };
  AttentionState total = state_of_thread(0), whole = state_of_thread(1);
  const AttentionState part = state_of_thread(2);
  bool empty = true;  // total is
  HeadScratch& head = head_of(block, scratch);
  load_queries(block, head);
  size_t next = 0;
  const Segment* open = nullptr;  // `whole` holds what it and others of its map gave
  const auto close = [&] {
    if (open == nullptr) return;
    map_back(block, *open, whole, scratch);
    if (empty) {
      std::swap(total, whole);
    } else {
      merge(total, whole, queries);
    }
    empty = false;
  };
  for (const Segment& segment : segments_of(block)) {
    const int splits = splits_of(block, segment);
    if (splits == 0) continue;
    bool first = open == nullptr || open->map != segment.map;
    if (first) {
      close();
      clear(whole, queries);
    }
    open = &segment;
    if (!splits_are_done) prepare_segment(block, segment, head);
    for (int split = 0; split < splits; ++split, first = false) {
      if (splits_are_done) {
        merge(whole, state_at(shared_states_, block.first_state, next++, queries), queries);
        continue;
      }
      const AttentionState& state = first ? whole : part;
      if (!first) clear(part, queries);
      head.pages->see(run_of(block, segment, split), state);
      if (!first) merge(whole, part, queries);
    }
  }
  close();
  if (empty) clear(total, queries);
  see_exact(block, total, scratch);
  store_result(block, total);
}

// The sink, for rows whose page comes after it, and every row's own page up to itself.
void CpuAttention::see_exact(const Block& block, const AttentionState& state, Scratch& scratch) const {
  for (const Segment& segment : segments_of(block)) {
    const int first_query = segment.own ? std::max(0, page_tokens_ - block.begin) * group_ : 0;
    const int hidden = hidden_from(block, 0);
    const int end_query = static_cast<int>(std::clamp((int64_t{segment.masked_tokens} - hidden) * group_,
                                                      int64_t{0}, int64_t{queries_of(block)}));
    if (segment.masked_tokens == 0 || first_query >= end_query) continue;
    const EncodedHead& head = maps_.at(segment.map, block.head).head;
    const std::byte* sink = segment.slabs[head.layout->sink_slab()];
    const auto rows = [&](const VectorLayout& vector) {
      return sink + head.layout->rows_of(vector.bank, vector.side, block.head).sink_offset;
    };
    see_rows(block,
             {.keys = rows(*head.key),
              .values = rows(*head.value),
              .tokens = segment.masked_tokens,
              .first_valid = segment.masked_tokens,
              .hidden = hidden + first_query / group_},
             first_query, end_query, state, scratch);
  }
  for (int page = block.begin / page_tokens_; page * page_tokens_ < block.end; ++page) {
    const int page_begin = page * page_tokens_;
    const int begin = std::max(block.begin, page_begin), end = std::min(block.end, page_begin + page_tokens_);
    see_rows(block,
             {.keys = writer_.own_page(block.sequence, Side::kKey, block.head, page),
              .values = writer_.own_page(block.sequence, Side::kValue, block.head, page),
              .tokens = end - page_begin,
              .first_valid = begin - page_begin + 1,
              .hidden = hidden_from(block, page_begin) + begin - block.begin},
             (begin - block.begin) * group_, (end - block.begin) * group_, state, scratch);
  }
}

void CpuAttention::see_rows(const Block& block, ExactRows rows, int first_query, int end_query,
                            const AttentionState& state, Scratch& scratch) const {
  const HeadScratch& head = head_of(block, scratch);
  const size_t first = static_cast<size_t>(first_query) * dim_;
  rows.dtype = step_->layout->dtype;
  rows.dim = dim_;
  rows.group = group_;
  rows.queries = {.rows = head.queries.data() + first,
                  .stride = dim_,
                  .count = end_query - first_query,
                  .soft_cap = step_->soft_cap,
                  .rounded = exact_in_pairs_ ? head.rounded.data() + first : nullptr};
  scratch.exact.see(rows, {state.maximum + first_query, state.sum + first_query,
                           state.acc + static_cast<size_t>(first_query) * state.stride, state.stride});
}

void CpuAttention::store_result(const Block& block, const AttentionState& state) {
  const SequenceSlice& slice = step_->sequences[block.sequence];
  const size_t first_row = static_cast<size_t>(slice.first_row) + block.begin - slice.first_slot;
  const size_t first_head = static_cast<size_t>(block.head) * group_;
  const int queries = queries_of(block);
  simd::store_results({.acc = state.acc,
                       .acc_stride = state.stride,
                       .sum = state.sum,
                       .rows = queries,
                       .group = group_,
                       .dim = dim_,
                       .out = step_->out.as<float>() + first_row * step_->out.cols + first_head * dim_,
                       .out_stride = step_->out.cols});
  for (int query = 0; query < queries && slice.observer != nullptr; ++query) {
    const size_t at = (first_row + query / group_) * step_->num_q_heads + first_head + query % group_;
    softmax_.maximum[at] = state.maximum[query];
    softmax_.inverse_sum[at] = 1.0f / state.sum[query];
  }
}

// One task per observed sequence, head and range of pages: every slot's sums belong to one task.
void CpuAttention::observe() {
  struct ObserveTask {
    int sequence, head, first_page;
  };
  std::vector<ObserveTask> tasks;
  for (int s = 0; s < static_cast<int>(step_->sequences.size()); ++s) {
    const SequenceSlice& slice = step_->sequences[s];
    if (slice.observer == nullptr) continue;
    const int pages = ceil_div(slice.first_slot + slice.num_rows, page_tokens_);
    for (int page = 0; page < pages; page += kObservedPages) {
      for (int head = 0; head < heads_; ++head) tasks.push_back({s, head, page});
    }
  }
  pool_.parallel_for(static_cast<int>(tasks.size()), [&](int task, int thread) {
    const auto [sequence, head, first_page] = tasks[task];
    scratch_[thread].observation.run(*step_, writer_, softmax_, exact_in_pairs_, sequence, head, first_page);
  });
}

}  // namespace lowkey::kernels
