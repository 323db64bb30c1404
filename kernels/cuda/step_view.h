// One attention step as kernels see it: plain structs in device memory, written by AttentionPlan. Without
// padding: whether a plan is on the device already is seen by its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device_layout.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/fast_plan.h"

namespace lowkey::kernels::cuda {

// Encoded pages of one sequence in one format.
struct DeviceSegment {
  const DeviceLayout* layout = nullptr;
  std::byte* const* slabs = nullptr;  // [page][kMaxSlabs]
  const uint8_t* levels = nullptr;    // [page]; null: all of the layout's
  int bank = 0;                       // where not `own`: the step's
  int map = 0;                        // whose mapped queries (AttentionPlan::Map) belong to it
  int num_pages = 0;                  // where not `own`
  int sink_tokens = 0;                // first tokens of page 0 that are seen exact
  int64_t own = false;                // a row sees the pages before its own
};
static_assert(std::has_unique_object_representations_v<DeviceSegment>);

struct DeviceSequence {
  std::byte* tail = nullptr;          // null: a row that only fills up the step
  std::byte* const* slabs = nullptr;  // of the pages completed in this step too
  int first_row = 0, num_rows = 0, first_slot = 0;
  int first_segment = 0, num_segments = 0;
  int padding = 0;
};
static_assert(std::has_unique_object_representations_v<DeviceSequence>);

// One row of the step.
struct DeviceRow {
  int sequence = 0;
  int slot = 0;
  int first_state = 0;  // partial results of KV head h: [first_state + h * num_states, + num_states)
  int num_states = 0;   // per KV head, in the order they are merged
  int first_piece = 0;  // of the list that says which segment each is of
  int first_seen = 0;   // slot: the window begins
};

// What is attended at once: some consecutive pages of one segment, by one row under one KV head.
struct DeviceItem {
  int row = 0;
  int segment = 0;
  int head = 0;
  int first_page = 0;
  int num_pages = 0;
  int state = 0;  // its partial result
  // Further rows that see the same pages, for the fast kernel; the next row's result is row_states further
  // on.
  int num_rows = 1;
  int row_states = 0;
};

// Queries in the coordinates of one bank's keys, times the step's scale: score = query . features + bias.
struct DeviceMap {
  float* queries = nullptr;  // [row][query head][stride]
  float* biases = nullptr;   // [row][query head]
  const DeviceLayout* layout = nullptr;
  const FastPlan* plans = nullptr;  // of the bank, where it has them: [head][level - 1]
  int stride = 0;
  int bank = 0;  // where not `own`: the step's
  int64_t own = false;
};
static_assert(std::has_unique_object_representations_v<DeviceMap>);

// A page to be encoded.
struct DevicePage {
  int sequence = 0;
  int page = 0;
};

// Lists as kernels take them. Where `count` is set the device knows how long the list is (recorded steps,
// whose launches do not depend on it), and blocks take more than one entry each, or none.
struct ItemList {
  const DeviceItem* items = nullptr;
  int most = 0;  // to choose a grid by; their number, where `count` is null
  const int* count = nullptr;
  __device__ int size() const { return count == nullptr ? most : *count; }
};
struct PageList {
  const DevicePage* pages = nullptr;
  int most = 0;
  const int* count = nullptr;
  __device__ int size() const { return count == nullptr ? most : *count; }
};

struct StepView {
  const DeviceLayout* layout = nullptr;
  int bank = 0;
  int head_dim = 0, num_q_heads = 0, group = 0;
  int first_row = 0, num_rows = 0;  // of the step's, that this launch is for
  float scale = 0;
  float soft_cap = 0;
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  float* out = nullptr;
  const DeviceSequence* sequences = nullptr;
  const DeviceSegment* segments = nullptr;
  const DeviceRow* rows = nullptr;
  const DeviceMap* maps = nullptr;
  const int* pieces = nullptr;  // segment of each partial result of one head of a row
};

// A partial result: maximum, sum of weights, weighted sum of values in the segment's coordinates.
struct Partials {
  float* floats = nullptr;  // [state][query of the group][stride]
  int stride = 0;           // 2 + the longest vector
  __device__ float* of(int64_t state, int group, int query) const {
    return floats + (state * group + query) * stride;
  }
};

__device__ __forceinline__ const DeviceVector& vector_of(const DeviceLayout& layout, int bank, Side side,
                                                         int head) {
  const int per_side = layout.num_kv_heads / layout.join;
  return layout.vectors[(bank * 2 + (side == Side::kValue)) * per_side + head / layout.join];
}
__device__ __forceinline__ const RowsLayout& rows_of(const DeviceLayout& layout, int bank, Side side,
                                                     int head) {
  return layout.rows[(bank * 2 + (side == Side::kValue)) * layout.num_kv_heads + head];
}

__device__ __forceinline__ int bank_of(const StepView& step, const DeviceSegment& segment) {
  return segment.own ? step.bank : segment.bank;
}

__device__ __forceinline__ float load_value(const std::byte* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(data)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[i];
  return dtype == DType::kBf16 ? from_bf16(bits) : from_f16(bits);
}
__device__ __forceinline__ void store_value(std::byte* data, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32) {
    reinterpret_cast<float*>(data)[i] = x;
  } else {
    reinterpret_cast<uint16_t*>(data)[i] = dtype == DType::kBf16 ? to_bf16(x) : to_f16(x);
  }
}
__device__ __forceinline__ float round_value(DType dtype, float x) {
  if (dtype == DType::kF32) return x;
  return dtype == DType::kBf16 ? from_bf16(to_bf16(x)) : from_f16(to_f16(x));
}

// Element f of the exact row of a slot: of one that the step brings, of one that the tail has, of either.
__device__ __forceinline__ float brought_value(const StepView& step, const DeviceSequence& sequence,
                                               Side side, int head, int slot, int f) {
  const DeviceLayout& layout = *step.layout;
  const int64_t row = sequence.first_row + slot - sequence.first_slot;
  const float* x = side == Side::kKey ? step.k : step.v;
  return round_value(layout.dtype, x[(row * layout.num_kv_heads + head) * layout.head_dim + f]);
}
__device__ __forceinline__ float tail_value(const StepView& step, const DeviceSequence& sequence, Side side,
                                            int head, int slot, int f) {
  const DeviceLayout& layout = *step.layout;
  return load_value(sequence.tail + rows_of(layout, step.bank, side, head).tail_offset, layout.dtype,
                    slot % layout.page_tokens * layout.head_dim + f);
}
__device__ __forceinline__ float exact_value(const StepView& step, const DeviceSequence& sequence, Side side,
                                             int head, int slot, int f) {
  return slot >= sequence.first_slot ? brought_value(step, sequence, side, head, slot, f)
                                     : tail_value(step, sequence, side, head, slot, f);
}

}  // namespace lowkey::kernels::cuda
