#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/page_tile.h"
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

CpuAttention::CpuAttention(ComputePool& pool) : pool_(pool), writer_(pool), scratch_(pool.threads()) {}

void CpuAttention::attend(const AttentionStep& step) {
  plan(step);
  writer_.write(step);
  pool_.parallel_for(static_cast<int>(tasks_.size()),
                     [&](int task, int thread) { run_task(tasks_[task], scratch_[thread]); });
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
  float* base = memory.data() + first + index * state_floats(queries);
  return {base, base + queries, base + 2 * static_cast<size_t>(queries), state_stride_};
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
  const AttentionState total = state_of_thread(0), whole = state_of_thread(1), part = state_of_thread(2);
  clear(total, queries);
  HeadScratch& head = scratch.heads[0];
  load_queries(block, head);
  size_t next = 0;
  const Segment* open = nullptr;  // `whole` holds what it and others of its map gave
  const auto close = [&] {
    if (open == nullptr) return;
    map_back(block, *open, whole, scratch);
    merge(total, whole, queries);
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
  see_exact(block, total, scratch);
  store_result(block, total);
}

// Query rows of the block as [(row, query head of the group)][dim], times the softmax scale.
void CpuAttention::load_queries(const Block& block, HeadScratch& head) const {
  const SequenceSlice& slice = step_->sequences[block.sequence];
  const size_t n = static_cast<size_t>(group_) * dim_;
  head.mapped = kNoMap;
  grow(head.queries, static_cast<size_t>(queries_of(block)) * dim_);
  for (int slot = block.begin; slot < block.end; ++slot) {
    const size_t row = static_cast<size_t>(slice.first_row) + slot - slice.first_slot;
    simd::scale_row(step_->q.as<float>() + row * step_->q.cols + block.head * n, step_->scale,
                    head.queries.data() + (slot - block.begin) * n, static_cast<int>(n));
  }
}

void CpuAttention::prepare_segment(const Block& block, const Segment& segment, HeadScratch& head) const {
  const HeadMap& map = maps_.at(segment.map, block.head);
  FeatureQueries queries{
      .rows = head.queries.data(), .stride = dim_, .count = queries_of(block), .soft_cap = step_->soft_cap};
  if (step_->soft_cap != 0 && map.key_mean != nullptr) {
    grow(head.offsets, queries.count);
    for (int i = 0; i < queries.count; ++i)
      head.offsets[i] =
          simd::dot_row(head.queries.data() + static_cast<size_t>(i) * dim_, map.key_mean, dim_);
    queries.offsets = head.offsets.data();
  }
  if (map.key != nullptr) {
    const int stride = simd::tile_stride(map.head.key->dim);
    if (head.mapped != segment.map) {
      head.mapped = segment.map;
      grow(head.mapped_queries, static_cast<size_t>(queries.count) * stride);
      simd::multiply_tile({queries.rows, dim_, map.key, stride, head.mapped_queries.data(), stride,
                           queries.count, dim_, stride, /*accumulate=*/false});
    }
    queries.rows = head.mapped_queries.data();
    queries.stride = stride;
  }
  head.pages = &head.float_pages;
  CodePages& code_pages = head.code_pages[segment.levels - 1];
  if (code_pages.can_read(map.head, segment.levels)) head.pages = &code_pages;
  head.pages->prepare(map.head, segment.levels, queries);
}

PageRun CpuAttention::run_of(const Block& block, const Segment& segment, int split) const {
  const int skipped = skipped_of(block, segment), pages = pages_of(block, segment);
  const int first = (skipped / kSplitPages + split) * kSplitPages;
  PageRun run{.slabs = segment.slabs + static_cast<size_t>(first) * kMaxSlabs,
              .num_pages = std::min(kSplitPages, pages - first),
              .pages_after = std::max(0, pages - first - kSplitPages),
              .masked_tokens = first == 0 ? segment.masked_tokens : 0,
              .windowed = segment.own && step_->window > 0,
              .hidden = hidden_from(block, (segment.first_page + first) * page_tokens_),
              .group = group_,
              .skipped = std::max(0, skipped - first)};
  for (int page = 0; page < run.num_pages && segment.own; ++page)
    run.first_query[page] =
        std::max(0, (segment.first_page + first + page + 1) * page_tokens_ - block.begin) * group_;
  return run;
}

// From feature coordinates to the head's own, in place; the mean's part of the scores is the same for all
// tokens of the segment.
void CpuAttention::map_back(const Block& block, const Segment& segment, const AttentionState& state,
                            Scratch& scratch) const {
  const HeadMap& map = maps_.at(segment.map, block.head);
  const int queries = queries_of(block), stride = simd::tile_stride(dim_);
  for (int i = 0; i < queries && map.key_mean != nullptr && step_->soft_cap == 0; ++i) {
    state.maximum[i] +=
        simd::dot_row(scratch.heads[0].queries.data() + static_cast<size_t>(i) * dim_, map.key_mean, dim_);
  }
  if (map.value != nullptr) {
    float* sums = scratch.mapped_sums.data();
    simd::multiply_tile({state.acc, state.stride, map.value, stride, sums, stride, queries,
                         map.head.value->dim, stride, /*accumulate=*/false});
    for (int i = 0; i < queries; ++i)
      std::copy_n(sums + static_cast<size_t>(i) * stride, stride,
                  state.acc + static_cast<size_t>(i) * state.stride);
  }
  for (int i = 0; i < queries && map.value_mean != nullptr; ++i)
    simd::add_scaled_row(map.value_mean, state.sum[i], state.acc + static_cast<size_t>(i) * state.stride,
                         dim_);
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
    see_rows({.keys = rows(*head.key),
              .values = rows(*head.value),
              .tokens = segment.masked_tokens,
              .first_query = first_query,
              .end_query = end_query,
              .first_valid = segment.masked_tokens,
              .hidden = hidden},
             state, scratch);
  }
  for (int page = block.begin / page_tokens_; page * page_tokens_ < block.end; ++page) {
    const int page_begin = page * page_tokens_;
    const int begin = std::max(block.begin, page_begin), end = std::min(block.end, page_begin + page_tokens_);
    see_rows({.keys = writer_.own_page(block.sequence, Side::kKey, block.head, page),
              .values = writer_.own_page(block.sequence, Side::kValue, block.head, page),
              .tokens = end - page_begin,
              .first_query = (begin - block.begin) * group_,
              .end_query = (end - block.begin) * group_,
              .first_valid = begin - page_begin + 1,
              .hidden = hidden_from(block, page_begin)},
             state, scratch);
  }
}

// Products run over whole tiles; tokens out of sight get weight 0.
void CpuAttention::see_rows(const ExactRows& exact, const AttentionState& state, Scratch& scratch) const {
  const auto& [keys, values, tokens, first_query, end_query, first_valid, hidden] = exact;
  const int extent = simd::tile_stride(tokens), value_stride = simd::tile_stride(dim_);
  const int rows = end_query - first_query;
  const DType dtype = step_->layout->dtype;
  std::fill_n(scratch.key_tile.data(), static_cast<size_t>(dim_) * extent, 0.0f);
  std::fill_n(scratch.value_tile.data(), static_cast<size_t>(extent) * value_stride, 0.0f);
  simd::load_tile(Side::kKey, keys, dtype, tokens, extent, dim_, scratch.key_tile.data());
  simd::load_tile(Side::kValue, values, dtype, tokens, extent, dim_, scratch.value_tile.data());
  float* scores = scratch.scores.data();
  float* acc = state.acc + static_cast<size_t>(first_query) * state.stride;
  simd::multiply_tile({scratch.heads[0].queries.data() + static_cast<size_t>(first_query) * dim_, dim_,
                       scratch.key_tile.data(), extent, scores, extent, rows, dim_, extent,
                       /*accumulate=*/false});
  for (int i = 0; i < rows; ++i) {
    float* row = scores + static_cast<size_t>(i) * extent;
    if (step_->soft_cap != 0) simd::soft_cap_row(row, 0, step_->soft_cap, extent);
    const int out_of_sight = hidden + (first_query + i) / group_;
    if (out_of_sight > 0) std::fill_n(row, out_of_sight, -std::numeric_limits<float>::infinity());
  }
  simd::softmax_rows({.scores = scores,
                      .stride = extent,
                      .rows = rows,
                      .tokens = tokens,
                      .first_valid = first_valid,
                      .group = group_,
                      .maximum = state.maximum + first_query,
                      .sum = state.sum + first_query,
                      .acc = acc,
                      .acc_stride = state.stride,
                      .dim = value_stride});
  simd::multiply_tile({scores, extent, scratch.value_tile.data(), value_stride, acc, state.stride, rows,
                       extent, value_stride, /*accumulate=*/true});
}

void CpuAttention::store_result(const Block& block, const AttentionState& state) {
  const SequenceSlice& slice = step_->sequences[block.sequence];
  for (int slot = block.begin; slot < block.end; ++slot) {
    const size_t row = static_cast<size_t>(slice.first_row) + slot - slice.first_slot;
    for (int g = 0; g < group_; ++g) {
      const int query = (slot - block.begin) * group_ + g;
      simd::scale_row(state.acc + static_cast<size_t>(query) * state.stride, 1.0f / state.sum[query],
                      step_->out.as<float>() + row * step_->out.cols +
                          (static_cast<size_t>(block.head) * group_ + g) * dim_,
                      dim_);
      if (slice.observer == nullptr) continue;
      const size_t softmax = row * step_->num_q_heads + static_cast<size_t>(block.head) * group_ + g;
      softmax_.maximum[softmax] = state.maximum[query];
      softmax_.inverse_sum[softmax] = 1.0f / state.sum[query];
    }
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
    scratch_[thread].observation.run(*step_, writer_, softmax_, sequence, head, first_page);
  });
}

}  // namespace lowkey::kernels
