#include "kernels/cpu/cache_writer.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/cpu/compute_pool.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_ops.h"
#include "kernels/ops/compaction.h"

namespace lowkey::kernels {
namespace {

// Below this many K and V elements a fork costs more than it saves.
constexpr int64_t kSerialElements = 16 * 1024;

}  // namespace

CacheWriter::CacheWriter(ComputePool& pool) : pool_(pool), encoders_(pool.threads()) {}

void CacheWriter::write(const AttentionStep& step) {
  step_ = &step;
  plan();
  const int sequences = static_cast<int>(step.sequences.size()), heads = step.layout->num_kv_heads;
  const bool joined =
      step.layout->join > 1;  // a stored vector is of several heads: rows of all of them first
  run_all(sequences * 2 * heads, [&](int task, int thread) {
    const int sequence = task / (2 * heads), head = task % heads;
    const Side side = task % (2 * heads) < heads ? Side::kKey : Side::kValue;
    store_rows(sequence, side, head);
    if (step.first_reader && !joined) encode_pages(sequence, side, head, encoders_[thread]);
  });
  if (!step.first_reader || !joined) return;
  const int vectors = step.layout->vectors_per_side();
  run_all(sequences * 2 * vectors, [&](int task, int thread) {
    const Side side = task % (2 * vectors) < vectors ? Side::kKey : Side::kValue;
    encode_pages(task / (2 * vectors), side, task % vectors, encoders_[thread]);
  });
}

void CacheWriter::plan() {
  const PageLayout& layout = *step_->layout;
  row_bytes_ = layout.head_dim * dtype_bytes(layout.dtype);
  own_.clear();
  size_t bytes = 0;
  for (const SequenceSlice& sequence : step_->sequences) {
    OwnPages own;
    own.first = sequence.first_slot / layout.page_tokens;
    own.end_slot = sequence.first_slot + sequence.num_rows;
    own.count = ceil_div(own.end_slot, layout.page_tokens) - own.first;
    own.offset = bytes;
    bytes += size_t{2} * layout.num_kv_heads * (own.count - 1) * layout.page_tokens * row_bytes_;
    own_.push_back(own);
  }
  grow(own_rows_, bytes);
}

// Small steps are not worth waking the pool.
template <class Function>
void CacheWriter::run_all(int count, const Function& task) {
  if (int64_t{step_->k.rows} * step_->k.cols * 2 >= kSerialElements) return pool_.parallel_for(count, task);
  for (int i = 0; i < count; ++i) task(i, 0);
}

std::byte* CacheWriter::own_page(int sequence, Side side, int head, int page) {
  const PageLayout& layout = *step_->layout;
  const OwnPages& own = own_[sequence];
  if (page == own.first) {
    return step_->sequences[sequence].tail + layout.rows_of(step_->bank, side, head).tail_offset;
  }
  const size_t vector = static_cast<size_t>(side == Side::kValue) * layout.num_kv_heads + head;
  const size_t index = vector * (own.count - 1) + (page - own.first - 1);
  return own_rows_.data() + own.offset + index * layout.page_tokens * row_bytes_;
}

void CacheWriter::store_rows(int sequence, Side side, int head) {
  const PageLayout& layout = *step_->layout;
  const SequenceSlice& slice = step_->sequences[sequence];
  const Tensor& source = side == Side::kKey ? step_->k : step_->v;
  const int tokens = layout.page_tokens;
  for (int row = 0, count; row < slice.num_rows; row += count) {  // those of one page together
    const int slot = slice.first_slot + row;
    count = std::min(slice.num_rows - row, tokens - slot % tokens);
    const float* x = source.as<float>() + static_cast<size_t>(slice.first_row + row) * source.cols +
                     static_cast<size_t>(head) * layout.head_dim;
    std::byte* target = own_page(sequence, side, head, slot / tokens) + slot % tokens * row_bytes_;
    if (layout.dtype != DType::kF32) {
      simd::f32_to_bf16_rows(x, source.cols, reinterpret_cast<uint16_t*>(target), count, layout.head_dim);
      continue;
    }
    for (int i = 0; i < count; ++i)
      std::memcpy(target + i * row_bytes_, x + static_cast<size_t>(i) * source.cols, row_bytes_);
  }
}

void CacheWriter::encode_pages(int sequence, Side side, int index, simd::PageEncoder& encoder) {
  const PageLayout& layout = *step_->layout;
  const VectorLayout& vector = layout.vector(step_->bank, side, index * layout.join);
  const OwnPages& own = own_[sequence];
  for (int page = own.first; page < own.end_slot / layout.page_tokens; ++page) {
    std::byte* const* slabs = step_->sequences[sequence].slabs + static_cast<size_t>(page) * kMaxSlabs;
    std::array<const std::byte*, kMaxGroups * kGroupFeatures / 4> rows;  // head_dim >= 4
    for (int i = 0; i < layout.join; ++i) rows[i] = own_page(sequence, side, vector.head + i, page);
    encoder.encode(layout, vector, {rows.data(), vector.num_heads}, {slabs});
    for (int i = 0; i < layout.join && page == 0 && layout.sink_tokens > 0; ++i) {
      write_sink(layout, layout.rows_of(step_->bank, side, vector.head + i), rows[i],
                 slabs[layout.sink_slab()]);
    }
  }
}

void CacheWriter::save_tails() {
  const PageLayout& layout = *step_->layout;
  for (int s = 0; s < static_cast<int>(own_.size()); ++s) {
    const int left = own_[s].end_slot % layout.page_tokens, last_page = own_[s].end_slot / layout.page_tokens;
    if (left == 0 || last_page == own_[s].first) continue;
    for (Side side : {Side::kKey, Side::kValue}) {
      for (int head = 0; head < layout.num_kv_heads; ++head)
        std::memcpy(own_page(s, side, head, own_[s].first), own_page(s, side, head, last_page),
                    left * row_bytes_);
    }
  }
}

void CacheWriter::compact(const Compaction& compaction) {
  const int vectors = compaction.to->vectors_per_side();
  pool_.parallel_for(2 * vectors, [&](int task, int thread) {
    compact_vector(
        compaction, task < vectors ? Side::kKey : Side::kValue, task % vectors,
        [&](const PageLayout& layout, const VectorLayout& vector, std::span<const std::byte* const> head_rows,
            PageView page) { encoders_[thread].encode(layout, vector, head_rows, page); });
  });
}

}  // namespace lowkey::kernels
