#include "kernels/cuda/attention_kernels.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_codes.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTile = 16;          // tokens decoded at a time
constexpr int kMapRows = 8;        // rows that share a read of the map
constexpr int kItemBlocks = 2112;  // enough to fill a device

// Grid: (tiles of rows, query heads).
__global__ void map_queries(StepView step, DeviceMap map) {
  LOWKEY_SHARED(float, queries);  // [head_dim][kMapRows]
  const DeviceLayout& layout = *map.layout;
  const int dim = layout.head_dim, query_head = blockIdx.y, head = query_head / step.group;
  const DeviceVector& vector = vector_of(layout, (map.own ? step.bank : map.bank), Side::kKey, head);
  const int begin = blockIdx.x * kMapRows, rows = min(kMapRows, step.num_rows - begin);
  const int first = step.first_row + begin;
  const int offset = (head - vector.layout.head) * dim;
  for (int i = threadIdx.x; i < dim * kMapRows; i += kThreads) {
    const int row = i / dim, f = i % dim;
    queries[f * kMapRows + row] =
        row < rows ? step.q[(int64_t{first + row} * step.num_q_heads + query_head) * dim + f] * step.scale
                   : 0.0f;
  }
  __syncthreads();
  const auto target = [&](int row) { return int64_t{first + row} * step.num_q_heads + query_head; };
  if (static_cast<int>(threadIdx.x) < rows) {
    float bias = 0;
    for (int f = 0; f < dim && vector.mean != nullptr; ++f)
      bias = fmaf(queries[f * kMapRows + threadIdx.x], vector.mean[offset + f], bias);
    map.biases[target(threadIdx.x)] = bias;
  }
  for (int j = threadIdx.x; j < vector.layout.dim; j += kThreads) {
    float sums[kMapRows] = {};
    if (vector.decode_t == nullptr) {
      for (int r = 0; r < rows && j >= offset && j < offset + dim; ++r)
        sums[r] = queries[(j - offset) * kMapRows + r];
    } else {
      for (int f = 0; f < dim; ++f) {
        const float weight = vector.decode_t[int64_t{offset + f} * vector.layout.dim + j];
#pragma unroll
        for (int r = 0; r < kMapRows; ++r) sums[r] = fmaf(weight, queries[f * kMapRows + r], sums[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kMapRows; ++r) {
      if (r < rows) map.queries[target(r) * map.stride + j] = sums[r];
    }
  }
}

__device__ float capped(const StepView& step, float score) {
  return step.soft_cap == 0.0f ? score : step.soft_cap * tanhf(score / step.soft_cap);
}

// e^(x - maximum), 0 where nothing was seen.
__device__ float weight_of(float x, float maximum) {
  return x == -INFINITY ? 0.0f : expf(x - maximum);
}

// Tokens [first, first + kTile) of a page as floats, [kTile][dim].
__device__ void decode_tile(const DeviceLayout& layout, const DeviceVector& vector, std::byte* const* slabs,
                            int levels, int first, float* tile) {
  const int dim = vector.layout.dim;
  for (int i = threadIdx.x; i < kTile * dim; i += kThreads) {
    const int token = vector.layout.side == Side::kKey ? i % kTile : i / dim;
    const int feature = vector.layout.side == Side::kKey ? i / kTile : i % dim;
    tile[token * dim + feature] = first + token < layout.page_tokens
                                      ? read_feature(layout, vector, slabs, levels, first + token, feature)
                                      : 0.0f;
  }
}

// The online softmax of the queries of one item (Milakov & Gimelshein 2018).
struct Softmax {
  float* maxima;   // [group]
  float* sums;     // [group]
  float* shrinks;  // [group]: of what was summed up before this tile

  // Scores of `count` tokens of each query become weights; one thread per query.
  __device__ void weigh(float* scores, int count, int stride, int group) const {
    for (int g = threadIdx.x; g < group; g += kThreads) {
      float* row = scores + g * stride;
      float maximum = maxima[g], sum = 0;
      for (int t = 0; t < count; ++t) maximum = fmaxf(maximum, row[t]);
      shrinks[g] = weight_of(maxima[g], maximum);
      for (int t = 0; t < count; ++t) sum += row[t] = weight_of(row[t], maximum);
      sums[g] = sums[g] * shrinks[g] + sum;
      maxima[g] = maximum;
    }
  }
};

// Shared: queries and sums [group][max_dim], tile [kTile][max_dim], scores [group][kTile], softmax.
__device__ void attend_item(const StepView& step, const DeviceItem& item, int max_dim,
                            const Partials& partials, float* queries) {
  const DeviceRow row = step.rows[item.row];
  const DeviceSegment segment = step.segments[item.segment];
  const DeviceLayout& layout = *segment.layout;
  const DeviceMap map = step.maps[segment.map];
  const DeviceVector& key = vector_of(layout, bank_of(step, segment), Side::kKey, item.head);
  const DeviceVector& value = vector_of(layout, bank_of(step, segment), Side::kValue, item.head);
  const int key_dim = key.layout.dim, value_dim = value.layout.dim, group = step.group;
  float* const sums = queries + group * max_dim;
  float* const tile = sums + group * max_dim;
  float* const scores = tile + kTile * max_dim;
  const Softmax softmax{scores + group * kTile, scores + group * (kTile + 1), scores + group * (kTile + 2)};

  const int64_t first_query = int64_t{item.row} * step.num_q_heads + item.head * group;
  for (int i = threadIdx.x; i < group * max_dim; i += kThreads) {
    const int g = i / max_dim, f = i % max_dim;
    queries[i] = f < key_dim ? map.queries[(first_query + g) * map.stride + f] : 0.0f;
    sums[i] = 0;
  }
  for (int g = threadIdx.x; g < group; g += kThreads) {
    softmax.maxima[g] = -INFINITY;
    softmax.sums[g] = 0;
  }
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int p = item.first_page; p < item.first_page + item.num_pages; ++p) {
    std::byte* const* slabs = segment.slabs + int64_t{p} * kMaxSlabs;
    const int levels = segment.levels == nullptr ? layout.num_levels : segment.levels[p];
    // Tokens before this are seen exact, or not at all.
    const int masked =
        max(p == 0 ? segment.sink_tokens : 0, segment.own ? row.first_seen - p * layout.page_tokens : 0);
    for (int first = masked / kTile * kTile; first < layout.page_tokens; first += kTile) {
      __syncthreads();
      decode_tile(layout, key, slabs, levels, first, tile);
      __syncthreads();
      for (int i = warp; i < group * kTile; i += kWarps) {
        const int g = i / kTile, t = i % kTile;
        float dot = 0;
        for (int f = lane; f < key_dim; f += kWarpSize)
          dot = fmaf(queries[g * max_dim + f], tile[t * key_dim + f], dot);
        dot = sum_over(dot);
        const bool seen = first + t >= masked && first + t < layout.page_tokens;
        if (lane == 0) scores[i] = seen ? capped(step, dot + map.biases[first_query + g]) : -INFINITY;
      }
      __syncthreads();
      softmax.weigh(scores, kTile, kTile, group);
      decode_tile(layout, value, slabs, levels, first, tile);
      __syncthreads();
      for (int i = threadIdx.x; i < group * value_dim; i += kThreads) {
        const int g = i / value_dim, f = i % value_dim;
        float sum = sums[g * max_dim + f] * softmax.shrinks[g];
        for (int t = 0; t < kTile; ++t) sum = fmaf(scores[g * kTile + t], tile[t * value_dim + f], sum);
        sums[g * max_dim + f] = sum;
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * (value_dim + 2); i += kThreads) {
    const int g = i / (value_dim + 2), f = i % (value_dim + 2);
    partials.of(item.state, group, g)[f] = f == 0   ? softmax.maxima[g]
                                           : f == 1 ? softmax.sums[g]
                                                    : sums[g * max_dim + f - 2];
  }
}

// Grid: some blocks, which take the items in turn.
__global__ void attend_pages(StepView step, ItemList items, int max_dim, Partials partials) {
  LOWKEY_SHARED(float, shared);
  const int count = items.size();
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    attend_item(step, items.items[i], max_dim, partials, shared);
    __syncthreads();
  }
}

// finish_rows: teams of threads share the terms of long sums; what they have is added in their order.
constexpr int kTeams = 4;
constexpr int kTeamThreads = 128;
constexpr int kFinishThreads = kTeams * kTeamThreads;
constexpr int kFinishWarps = kFinishThreads / kWarpSize;

// result[f] = sum of terms(f, team, kTeams) over the teams; `scratch`: [kTeams][dim]. All threads call it.
template <class Terms>
__device__ void sum_by_teams(int dim, float* scratch, float* result, const Terms& terms) {
  const int team = threadIdx.x / kTeamThreads;
  __syncthreads();
  for (int f = threadIdx.x % kTeamThreads; f < dim; f += kTeamThreads)
    scratch[team * dim + f] = terms(f, team, kTeams);
  __syncthreads();
  for (int f = threadIdx.x; f < dim; f += kFinishThreads) {
    float total = 0;
    for (int t = 0; t < kTeams; ++t) total += scratch[t * dim + f];
    result[f] = total;
  }
  __syncthreads();
}

// What one query has seen so far, in the head's own coordinates; kept in shared memory by the whole block.
struct RowState {
  float* sums;                         // [head_dim]
  float maximum = -INFINITY, sum = 0;  // the same in all threads

  // Adds a result: maximum, sum, values [head_dim].
  __device__ void merge(int dim, float other_maximum, float other_sum, const float* values) {
    const float larger = fmaxf(maximum, other_maximum);
    const float keep = weight_of(maximum, larger), take = weight_of(other_maximum, larger);
    for (int f = threadIdx.x; f < dim; f += kFinishThreads) sums[f] = sums[f] * keep + values[f] * take;
    sum = sum * keep + other_sum * take;
    maximum = larger;
  }
};

// Shared memory of finish_rows.
struct FinishMemory {
  float* features;  // [max_dim]
  float* scratch;   // [kTeams][max_dim]
  float* values;    // [head_dim]
  float* sums;      // [head_dim]
  float* scores;    // [exact_tokens]
  float* weights;   // [max_states]
};

// Exact tokens that a row sees: sinks of its segments, then its own page.
struct ExactTokens {
  const StepView& step;
  const DeviceRow& row;
  const DeviceSequence& sequence;
  int head;

  // Calls body(index, read), read(side, f), for tokens index = first, first + stride, ...; returns how many
  // there are.
  template <class Body>
  __device__ int for_each(int first, int stride, const Body& body) const {
    const DeviceLayout& own = *step.layout;
    const int own_begin = row.slot / own.page_tokens * own.page_tokens;
    int count = 0;
    for (int s = 0; s < sequence.num_segments; ++s) {
      const DeviceSegment& segment = step.segments[sequence.first_segment + s];
      if (segment.own && own_begin == 0) continue;
      const DeviceLayout& layout = *segment.layout;
      for (int t = segment.own ? min(row.first_seen, segment.sink_tokens) : 0; t < segment.sink_tokens;
           ++t, ++count) {
        if (count % stride != first) continue;
        const std::byte* slab = segment.slabs[layout.num_levels];
        body(count, [&](Side side, int f) {
          return load_value(slab + rows_of(layout, bank_of(step, segment), side, head).sink_offset,
                            layout.dtype, int64_t{t} * layout.head_dim + f);
        });
      }
    }
    for (int slot = max(own_begin, row.first_seen); slot <= row.slot; ++slot, ++count) {
      if (count % stride != first) continue;
      body(count, [&](Side side, int f) { return exact_value(step, sequence, side, head, slot, f); });
    }
    return count;
  }
};

// Partial results [begin, end) of one segment: merged, mapped back, added to `state`.
__device__ void merge_segment(const StepView& step, const DeviceRow& row, int head, int query, int begin,
                              int end, const Partials& partials, const FinishMemory& memory,
                              RowState& state) {
  const DeviceSegment& segment = step.segments[step.pieces[row.first_piece + begin]];
  const DeviceVector& value = vector_of(*segment.layout, bank_of(step, segment), Side::kValue, head);
  const int dim = value.layout.dim, input = value.layout.input_dim, head_dim = step.layout->head_dim;
  const int offset = (head - value.layout.head) * head_dim, count = end - begin;
  const int64_t first = int64_t{row.first_state} + int64_t{head} * row.num_states + begin;
  const auto part = [&](int i) { return partials.of(first + i, step.group, query); };
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kFinishThreads) memory.weights[i] = part(i)[0];
  __syncthreads();
  float maximum = -INFINITY, sum = 0;
  for (int i = 0; i < count; ++i) maximum = fmaxf(maximum, memory.weights[i]);
  if (maximum == -INFINITY) return;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kFinishThreads)
    memory.weights[i] = weight_of(memory.weights[i], maximum);
  __syncthreads();
  for (int i = 0; i < count; ++i) sum = fmaf(part(i)[1], memory.weights[i], sum);
  sum_by_teams(dim, memory.scratch, memory.features, [&](int f, int team, int teams) {
    float total = 0;
    for (int i = team; i < count; i += teams) total = fmaf(part(i)[2 + f], memory.weights[i], total);
    return total;
  });
  sum_by_teams(head_dim, memory.scratch, memory.values, [&](int f, int team, int teams) {
    float x = team == 0 && value.mean != nullptr ? value.mean[offset + f] * sum : 0.0f;
    if (value.decode == nullptr) return team == 0 && offset + f < dim ? x + memory.features[offset + f] : x;
    for (int j = team; j < dim; j += teams)
      x = fmaf(value.decode[int64_t{j} * input + offset + f], memory.features[j], x);
    return x;
  });
  state.merge(head_dim, maximum, sum, memory.values);
}

// What the row sees exact, added to `state`.
__device__ void merge_exact(const StepView& step, const ExactTokens& exact, int64_t query,
                            const FinishMemory& memory, RowState& state) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, dim = step.layout->head_dim;
  float* const scores = memory.scores;
  __syncthreads();
  const int tokens = exact.for_each(warp, kFinishWarps, [&](int token, const auto& read) {
    float dot = 0;
    for (int f = lane; f < dim; f += kWarpSize)
      dot = fmaf(step.q[query * dim + f] * step.scale, read(Side::kKey, f), dot);
    dot = sum_over(dot);
    if (lane == 0) scores[token] = capped(step, dot);
  });
  __syncthreads();
  float maximum = -INFINITY, sum = 0;
  for (int t = 0; t < tokens; ++t) maximum = fmaxf(maximum, scores[t]);
  __syncthreads();
  for (int t = threadIdx.x; t < tokens; t += kFinishThreads) scores[t] = weight_of(scores[t], maximum);
  __syncthreads();
  for (int t = 0; t < tokens; ++t) sum += scores[t];
  sum_by_teams(dim, memory.scratch, memory.values, [&](int f, int team, int teams) {
    float x = 0;
    exact.for_each(team, teams,
                   [&](int token, const auto& read) { x = fmaf(scores[token], read(Side::kValue, f), x); });
    return x;
  });
  state.merge(dim, maximum, sum, memory.values);
}

// Grid: (row, query head).
__global__ void finish_rows(StepView step, StepExtents extents, Partials partials, float* softmax) {
  LOWKEY_SHARED(float, shared);
  const int index = step.first_row + blockIdx.x, dim = step.layout->head_dim;
  const int head = blockIdx.y / step.group, g = blockIdx.y % step.group;
  const DeviceRow row = step.rows[index];
  FinishMemory memory{.features = shared, .scratch = shared + extents.max_dim};
  memory.values = memory.scratch + kTeams * extents.max_dim;
  memory.sums = memory.values + dim;
  memory.scores = memory.sums + dim;
  memory.weights = memory.scores + extents.exact_tokens;
  const int64_t query = int64_t{index} * step.num_q_heads + blockIdx.y;
  for (int f = threadIdx.x; f < dim; f += kFinishThreads) memory.sums[f] = 0;
  RowState state{memory.sums};
  for (int begin = 0, end; begin < row.num_states; begin = end) {
    for (end = begin + 1;
         end < row.num_states && step.pieces[row.first_piece + end] == step.pieces[row.first_piece + begin];)
      ++end;
    merge_segment(step, row, head, g, begin, end, partials, memory, state);
  }
  merge_exact(step, {step, row, step.sequences[row.sequence], head}, query, memory, state);
  for (int f = threadIdx.x; f < dim; f += kFinishThreads)
    step.out[query * dim + f] = memory.sums[f] / state.sum;
  if (softmax != nullptr && threadIdx.x == 0) {
    softmax[2 * query] = state.maximum;
    softmax[2 * query + 1] = 1.0f / state.sum;
  }
}

// Key of a slot of exact pages, the tail or the step.
__device__ float key_value(const StepView& step, const DeviceSequence& sequence, int head, int slot, int f) {
  const DeviceLayout& layout = *step.layout;
  if (slot / layout.page_tokens >= sequence.first_slot / layout.page_tokens)
    return exact_value(step, sequence, Side::kKey, head, slot, f);
  const DeviceVector& vector = vector_of(layout, step.bank, Side::kKey, head);
  return read_feature(layout, vector, sequence.slabs + int64_t{slot / layout.page_tokens} * kMaxSlabs,
                      layout.num_levels, slot % layout.page_tokens,
                      (head - vector.layout.head) * layout.head_dim + f);
}

// Grid: (tiles of slots, KV head). One thread has one slot: its sums grow row by row, in order.
__global__ void observe(StepView step, ObserverView view, int num_slots, const float* softmax) {
  const int slot = blockIdx.x * kThreads + threadIdx.x, head = blockIdx.y, dim = step.layout->head_dim;
  const DeviceSequence& sequence = step.sequences[view.sequence];
  if (slot >= num_slots) return;
  const int64_t at = (int64_t{step.bank} * step.layout->num_kv_heads + head) * view.capacity + slot;
  if (view.key_norms != nullptr && slot >= sequence.first_slot) {
    float sum = 0;
    for (int f = 0; f < dim; ++f) {
      const float x = key_value(step, sequence, head, slot, f);
      sum = fmaf(x, x, sum);
    }
    view.key_norms[at] = sqrtf(sum);
  }
  if (view.column_sums == nullptr && view.window_sums == nullptr) return;
  const int first = max(slot, sequence.first_slot), end = sequence.first_slot + sequence.num_rows;
  for (int seen_by = first; seen_by < end; ++seen_by) {
    const int64_t row = sequence.first_row + seen_by - sequence.first_slot;
    float weight = 0;
    for (int g = 0; g < step.group; ++g) {
      const int64_t query = row * step.num_q_heads + head * step.group + g;
      float dot = 0;
      for (int f = 0; f < dim; ++f)
        dot = fmaf(step.q[query * dim + f] * step.scale, key_value(step, sequence, head, slot, f), dot);
      weight += expf(dot - softmax[2 * query]) * softmax[2 * query + 1];
    }
    if (view.column_sums != nullptr) view.column_sums[at] += weight;
    if (view.window_sums != nullptr && seen_by >= view.window_first) view.window_sums[at] += weight;
  }
}

}  // namespace

void launch_map_queries(cudaStream_t stream, const StepView& step, const DeviceMap& map) {
  launch(map_queries,
         {dim3(ceil_div(step.num_rows, kMapRows), step.num_q_heads), dim3(kThreads),
          size_t(step.head_dim) * kMapRows * sizeof(float)},
         stream, step, map);
}

void launch_attend_pages(cudaStream_t stream, const StepView& step, const ItemList& items,
                         const StepExtents& extents, const Partials& partials) {
  const size_t floats = size_t(2 * step.group + kTile) * extents.max_dim + size_t(step.group) * (kTile + 3);
  launch(attend_pages, {dim3(min(items.most, kItemBlocks)), dim3(kThreads), floats * sizeof(float)}, stream,
         step, items, extents.max_dim, partials);
}

void launch_finish_rows(cudaStream_t stream, const StepView& step, const StepExtents& extents,
                        const Partials& partials, float* softmax) {
  const size_t floats =
      size_t(1 + kTeams) * extents.max_dim + 2 * step.head_dim + extents.exact_tokens + extents.max_states;
  launch(finish_rows, {dim3(step.num_rows, step.num_q_heads), dim3(kFinishThreads), floats * sizeof(float)},
         stream, step, extents, partials, softmax);
}

void launch_observe(cudaStream_t stream, const StepView& step, const ObserverView& observer, int num_slots,
                    int num_kv_heads, const float* softmax) {
  launch(observe, {dim3(ceil_div(num_slots, kThreads), num_kv_heads), dim3(kThreads)}, stream, step, observer,
         num_slots, softmax);
}

}  // namespace lowkey::kernels::cuda
