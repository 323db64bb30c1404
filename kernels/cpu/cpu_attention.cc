#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/page_tile.h"
#include "kernels/cpu/simd_ops.h"
#include "kernels/ops/compaction.h"

namespace lowkey::kernels {
namespace {

// Part of the meaning of a result's bits: changing it changes the order of sums. 16 pages of 32 tokens are
// long enough that merging is free and short enough that a few thousand tokens feed several threads.
constexpr int kSplitPages = 16;

// Query rows of a block: enough to pay for decoding a tile, few enough that their state stays in the L2
// cache.
constexpr int kBlockQueries = 192;

// Below this many K and V elements a fork costs more than it saves.
constexpr int64_t kSerialElements = 16 * 1024;

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

template <class T>
void grow(std::vector<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
}

}  // namespace

CpuAttention::CpuAttention(ComputePool& pool) : pool_(pool), scratch_(pool.threads()) {}

void CpuAttention::attend(const AttentionStep& step) {
  plan(step);
  const int sequences = static_cast<int>(step.sequences.size());
  // Rows of all heads first: a stored vector may join several.
  const bool serial = int64_t{step.k.rows} * step.k.cols * 2 < kSerialElements;
  run_all(sequences * 2 * heads_, serial, [&](int task, int) {
    const int head = task % (2 * heads_);
    store_rows(task / (2 * heads_), head < heads_ ? Side::kKey : Side::kValue, head % heads_);
  });
  if (step.first_reader) {
    const int vectors = step.layout->vectors_per_side();
    run_all(sequences * 2 * vectors, serial, [&](int task, int thread) {
      const int vector = task % (2 * vectors);
      encode_pages(task / (2 * vectors), vector < vectors ? Side::kKey : Side::kValue, vector % vectors,
                   scratch_[thread]);
    });
  }
  pool_.parallel_for(static_cast<int>(tasks_.size()),
                     [&](int task, int thread) { run_task(tasks_[task], scratch_[thread]); });
  if (tasks_.size() > blocks_.size()) {
    pool_.parallel_for(static_cast<int>(blocks_.size()),
                       [&](int block, int) { merge_splits(blocks_[block]); });
  }
  if (step.last_reader) save_tails();
  step_ = nullptr;
}

void CpuAttention::compact(const Compaction& compaction) {
  const PageLayout& to = *compaction.to;
  const int vectors = to.vectors_per_side();
  pool_.parallel_for(2 * vectors, [&](int task, int thread) {
    Scratch& scratch = scratch_[thread];
    compact_vector(
        compaction, task < vectors ? Side::kKey : Side::kValue, task % vectors,
        [&](const PageLayout& layout, const VectorLayout& vector, std::span<const std::byte* const> head_rows,
            PageView page) { scratch.encoder.encode(layout, vector, head_rows, page); });
  });
}

// Small steps are not worth waking the pool.
template <class Function>
void CpuAttention::run_all(int count, bool serial, const Function& task) {
  if (!serial) return pool_.parallel_for(count, task);
  for (int i = 0; i < count; ++i) task(i, 0);
}

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
  row_bytes_ = dim_ * dtype_bytes(layout.dtype);
  plans_.clear();
  blocks_.clear();
  const int block_tokens = std::max(1, kBlockQueries / (group_ * page_tokens_)) * page_tokens_;
  max_queries_ = 0;
  size_t own_bytes = 0;
  for (size_t s = 0; s < step.sequences.size(); ++s) {
    const SequenceSlice& sequence = step.sequences[s];
    SequencePlan plan;
    plan.first_page = sequence.first_slot / page_tokens_;
    plan.end_position = sequence.first_slot + sequence.num_rows;
    plan.num_own_pages = ceil_div(plan.end_position, page_tokens_) - plan.first_page;
    plan.own_offset = own_bytes;
    own_bytes += size_t{2} * heads_ * (plan.num_own_pages - 1) * page_tokens_ * row_bytes_;
    plans_.push_back(plan);
    for (int begin = sequence.first_slot; begin < plan.end_position;) {
      const int end = std::min(plan.end_position, (begin / block_tokens + 1) * block_tokens);
      const int splits = ceil_div(ceil_div(end, page_tokens_), kSplitPages);
      for (int head = 0; head < heads_; ++head)
        blocks_.push_back({static_cast<int>(s), head, begin, end, splits});
      max_queries_ = std::max(max_queries_, (end - begin) * group_);
      begin = end;
    }
  }
  grow(own_rows_, own_bytes);
  plan_tasks();
  for (Scratch& scratch : scratch_) prepare(scratch);
}

// One task per block where that feeds all threads, else one per split.
void CpuAttention::plan_tasks() {
  state_floats_ = static_cast<size_t>(max_queries_) * (2 + simd::tile_stride(dim_));
  tasks_.clear();
  const bool split = pool_.threads() > 1 && static_cast<int>(blocks_.size()) < 4 * pool_.threads();
  size_t num_states = 0;
  // The last blocks of a sequence see the most pages: start with them.
  for (int i = static_cast<int>(blocks_.size()) - 1; i >= 0; --i) {
    Block& block = blocks_[i];
    if (!split || block.num_splits == 1) {
      tasks_.push_back({i, 0, block.num_splits});
      continue;
    }
    block.first_state = num_states;
    num_states += block.num_splits;
    for (int s = 0; s < block.num_splits; ++s) tasks_.push_back({i, s, s + 1});
  }
  grow(shared_states_, num_states * state_floats_);
}

void CpuAttention::prepare(Scratch& scratch) const {
  const size_t key_floats = static_cast<size_t>(dim_) * simd::tile_stride(page_tokens_);
  const size_t value_floats = static_cast<size_t>(page_tokens_) * simd::tile_stride(dim_);
  grow(scratch.key_tile, key_floats);
  // A value row's last group may be stored with a whole vector.
  grow(scratch.value_tile, value_floats + simd::kTileLanes);
  grow(scratch.queries, static_cast<size_t>(max_queries_) * dim_);
  grow(scratch.scores, static_cast<size_t>(max_queries_) * simd::tile_stride(page_tokens_));
  grow(scratch.states, 2 * state_floats_);
  grow(scratch.row, static_cast<size_t>(page_tokens_) * dim_ * (step_->layout->join + 1));
}

std::byte* CpuAttention::own_page(int sequence, Side side, int head, int page) {
  const SequencePlan& plan = plans_[sequence];
  if (page == plan.first_page) {
    return step_->sequences[sequence].tail + step_->layout->rows_of(step_->bank, side, head).tail_offset;
  }
  const size_t vector = static_cast<size_t>(side == Side::kValue) * heads_ + head;
  const size_t index = vector * (plan.num_own_pages - 1) + (page - plan.first_page - 1);
  return own_rows_.data() + plan.own_offset + index * page_tokens_ * row_bytes_;
}

// The step's rows, rounded to the dtype, to where their page's exact rows are.
void CpuAttention::store_rows(int sequence, Side side, int head) {
  const SequenceSlice& slice = step_->sequences[sequence];
  const Tensor& source = side == Side::kKey ? step_->k : step_->v;
  for (int row = 0; row < slice.num_rows; ++row) {
    const int position = slice.first_slot + row;
    const float* x = source.as<float>() + static_cast<size_t>(slice.first_row + row) * source.cols +
                     static_cast<size_t>(head) * dim_;
    std::byte* target =
        own_page(sequence, side, head, position / page_tokens_) + position % page_tokens_ * row_bytes_;
    if (step_->layout->dtype == DType::kF32) {
      std::memcpy(target, x, row_bytes_);
    } else {
      simd::f32_to_bf16_row(x, reinterpret_cast<uint16_t*>(target), dim_);
    }
  }
}

void CpuAttention::encode_pages(int sequence, Side side, int index, Scratch& scratch) {
  const PageLayout& layout = *step_->layout;
  const VectorLayout& vector = layout.vector(step_->bank, side, index * layout.join);
  const SequencePlan& plan = plans_[sequence];
  for (int page = plan.first_page; page < plan.end_position / page_tokens_; ++page) {
    std::byte* const* slabs = step_->sequences[sequence].slabs + static_cast<size_t>(page) * kMaxSlabs;
    std::array<const std::byte*, kMaxGroups> rows;
    for (int i = 0; i < layout.join; ++i) rows[i] = own_page(sequence, side, vector.head + i, page);
    scratch.encoder.encode(layout, vector, {rows.data(), vector.num_heads}, {slabs});
    for (int i = 0; i < layout.join && page == 0 && layout.sink_tokens > 0; ++i) {
      write_sink(layout, layout.rows_of(step_->bank, side, vector.head + i), rows[i],
                 slabs[layout.sink_slab()]);
    }
  }
}

// Rows of the last, incomplete page move from the step's scratch to the tail, now that nobody reads the old
// rows.
void CpuAttention::save_tails() {
  for (int s = 0; s < static_cast<int>(plans_.size()); ++s) {
    const SequencePlan& plan = plans_[s];
    const int left = plan.end_position % page_tokens_;
    const int last_page = plan.end_position / page_tokens_;
    if (left == 0 || last_page == plan.first_page) continue;
    for (Side side : {Side::kKey, Side::kValue}) {
      for (int head = 0; head < heads_; ++head) {
        std::memcpy(own_page(s, side, head, plan.first_page), own_page(s, side, head, last_page),
                    left * row_bytes_);
      }
    }
  }
}

CpuAttention::State CpuAttention::state_at(std::vector<float>& memory, size_t index) const {
  float* base = memory.data() + index * state_floats_;
  return {base, base + max_queries_, base + 2 * static_cast<size_t>(max_queries_)};
}

void CpuAttention::clear(const State& state, int queries) const {
  std::fill_n(state.maximum, queries, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, queries, 0.0f);
  std::fill_n(state.acc, static_cast<size_t>(queries) * simd::tile_stride(dim_), 0.0f);
}

void CpuAttention::run_task(const Task& task, Scratch& scratch) {
  const Block& block = blocks_[task.block];
  const int queries = (block.end - block.begin) * group_;
  load_queries(block, scratch);
  if (task.end_split - task.first_split < block.num_splits) {
    const State state = state_at(shared_states_, block.first_state + task.first_split);
    clear(state, queries);
    return run_split(block, task.first_split, state, scratch);
  }
  const State total = state_at(scratch.states, 0), part = state_at(scratch.states, 1);
  clear(total, queries);
  run_split(block, 0, total, scratch);
  for (int split = 1; split < block.num_splits; ++split) {
    clear(part, queries);
    run_split(block, split, part, scratch);
    merge(total, part, queries);
  }
  finish(block, total);
}

// Query rows of the block as [(row, query head of the group)][dim], times the softmax scale.
void CpuAttention::load_queries(const Block& block, Scratch& scratch) const {
  const SequenceSlice& slice = step_->sequences[block.sequence];
  const size_t n = static_cast<size_t>(group_) * dim_;
  for (int position = block.begin; position < block.end; ++position) {
    const size_t row = static_cast<size_t>(slice.first_row) + position - slice.first_slot;
    simd::scale_row(step_->q.as<float>() + row * step_->q.cols + block.head * n, step_->scale,
                    scratch.queries.data() + (position - block.begin) * n, static_cast<int>(n));
  }
}

// Each row sees the pages before its own encoded, and its own exact up to itself.
void CpuAttention::run_split(const Block& block, int split, const State& state, Scratch& scratch) {
  const int end_page = std::min((split + 1) * kSplitPages, ceil_div(block.end, page_tokens_));
  for (int page = split * kSplitPages; page < end_page; ++page) {
    const int page_end = (page + 1) * page_tokens_;
    const int first_after = std::max(block.begin, page_end);  // rows from here on are in later pages
    if (first_after < block.end)
      see_encoded(block, page, (first_after - block.begin) * group_, state, scratch);
    if (page_end > block.begin) see_own(block, page, state, scratch);
  }
}

void CpuAttention::see_encoded(const Block& block, int page, int first_query, const State& state,
                               Scratch& scratch) {
  const PageLayout& layout = *step_->layout;
  const SequenceSlice& slice = step_->sequences[block.sequence];
  std::byte* const* slabs = slice.slabs + static_cast<size_t>(page) * kMaxSlabs;
  for (Side side : {Side::kKey, Side::kValue}) {
    const VectorLayout& vector = layout.vector(step_->bank, side, block.head);
    float* tile = side == Side::kKey ? scratch.key_tile.data() : scratch.value_tile.data();
    simd::decode_tile(layout, vector, block.head, {slabs}, slice.levels, tile, scratch.row.data());
    if (page == 0 && layout.sink_tokens > 0) {
      simd::load_tile(side,
                      slabs[layout.sink_slab()] + layout.rows_of(step_->bank, side, block.head).sink_offset,
                      layout.dtype, layout.sink_tokens, page_tokens_, dim_, tile);
    }
  }
  see_tiles(first_query, (block.end - block.begin) * group_, page_tokens_, state, scratch);
}

void CpuAttention::see_own(const Block& block, int page, const State& state, Scratch& scratch) {
  const int page_begin = page * page_tokens_;
  const int begin = std::max(block.begin, page_begin);
  const int end = std::min(block.end, page_begin + page_tokens_);
  const int tokens = end - page_begin;  // of the page that any of these rows sees
  std::fill_n(scratch.key_tile.data(), static_cast<size_t>(dim_) * simd::tile_stride(page_tokens_), 0.0f);
  std::fill_n(scratch.value_tile.data(), static_cast<size_t>(page_tokens_) * simd::tile_stride(dim_), 0.0f);
  for (Side side : {Side::kKey, Side::kValue}) {
    simd::load_tile(side, own_page(block.sequence, side, block.head, page), step_->layout->dtype, tokens,
                    page_tokens_, dim_,
                    side == Side::kKey ? scratch.key_tile.data() : scratch.value_tile.data());
  }
  see_tiles((begin - block.begin) * group_, (end - block.begin) * group_, begin - page_begin + 1, state,
            scratch);
}

// Queries [first_query, end_query) of the block see the tiles: the first row `first_valid` tokens, each
// further row one more, up to all. Products run over whole tiles; tokens out of sight get weight 0.
void CpuAttention::see_tiles(int first_query, int end_query, int first_valid, const State& state,
                             Scratch& scratch) const {
  const int key_stride = simd::tile_stride(page_tokens_), value_stride = simd::tile_stride(dim_);
  const int rows = end_query - first_query;
  float* scores = scratch.scores.data();
  const float* queries = scratch.queries.data() + static_cast<size_t>(first_query) * dim_;
  float* acc = state.acc + static_cast<size_t>(first_query) * value_stride;
  simd::multiply_tile({queries, dim_, scratch.key_tile.data(), key_stride, scores, key_stride, rows, dim_,
                       key_stride,
                       /*accumulate=*/false});
  for (int i = 0; i < rows; ++i) {
    const int valid = std::min(page_tokens_, first_valid + i / group_);
    simd::softmax_row(scores + static_cast<size_t>(i) * key_stride, valid, key_stride,
                      state.maximum[first_query + i], state.sum[first_query + i],
                      acc + static_cast<size_t>(i) * value_stride, value_stride);
  }
  simd::multiply_tile({scores, key_stride, scratch.value_tile.data(), value_stride, acc, value_stride, rows,
                       page_tokens_, value_stride, /*accumulate=*/true});
}

void CpuAttention::merge(const State& into, const State& from, int queries) const {
  const int stride = simd::tile_stride(dim_);
  for (int i = 0; i < queries; ++i) {
    simd::merge_row(into.maximum[i], into.sum[i], into.acc + static_cast<size_t>(i) * stride, from.maximum[i],
                    from.sum[i], from.acc + static_cast<size_t>(i) * stride, stride);
  }
}

void CpuAttention::merge_splits(const Block& block) {
  const int queries = (block.end - block.begin) * group_;
  if (block.num_splits == 1) return;  // its one task has finished it
  const State total = state_at(shared_states_, block.first_state);
  for (int split = 1; split < block.num_splits; ++split) {
    merge(total, state_at(shared_states_, block.first_state + split), queries);
  }
  finish(block, total);
}

void CpuAttention::finish(const Block& block, const State& state) const {
  const SequenceSlice& slice = step_->sequences[block.sequence];
  for (int position = block.begin; position < block.end; ++position) {
    const size_t row = static_cast<size_t>(slice.first_row) + position - slice.first_slot;
    for (int g = 0; g < group_; ++g) {
      const int query = (position - block.begin) * group_ + g;
      simd::scale_row(state.acc + static_cast<size_t>(query) * simd::tile_stride(dim_),
                      1.0f / state.sum[query],
                      step_->out.as<float>() + row * step_->out.cols +
                          (static_cast<size_t>(block.head) * group_ + g) * dim_,
                      dim_);
    }
  }
}

}  // namespace lowkey::kernels
