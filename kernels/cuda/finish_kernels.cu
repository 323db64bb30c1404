#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/softmax_math.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

// finish_rows: teams of threads share the terms of long sums; what they have is added in their order.
constexpr int kTeams = 4;
constexpr int kTeamThreads = 128;
constexpr int kFinishThreads = kTeams * kTeamThreads;
constexpr int kFinishWarps = kFinishThreads / kWarpSize;
// Partial results of one segment that are merged at once: all of 512k tokens' and more, or part by part.
constexpr int kMostMerged = 1024;
__host__ __device__ constexpr int merged_at_once(int states) {
  return states < kMostMerged ? states : kMostMerged;
}

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
  float* weights;   // [merged_at_once(max_states)]: of partial results
  float* parts;     // [merged_at_once(max_states)]: their sums
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
    const int own_begin = row.slot / own.page_tokens * own.page_tokens, end = row.slot + 1;
    int count = 0;
    // Tokens [from, to) of one place; reader_of(token) reads one. Loads of several tokens are under way.
    const auto run = [&](int from, int to, const auto& reader_of) {
#pragma unroll 4
      for (int t = from + (first - count % stride + stride) % stride; t < to; t += stride)
        body(count + t - from, reader_of(t));
      count += max(0, to - from);
    };
    for (int s = 0; s < sequence.num_segments; ++s) {
      const DeviceSegment& segment = step.segments[sequence.first_segment + s];
      if (segment.own && own_begin == 0) continue;
      const DeviceLayout& layout = *segment.layout;
      const std::byte* slab = segment.slabs[layout.num_levels];
      run(segment.own ? min(row.first_seen, segment.sink_tokens) : 0, segment.sink_tokens, [&](int t) {
        return [&, t](Side side, int f) {
          return load_value(slab + rows_of(layout, bank_of(step, segment), side, head).sink_offset,
                            layout.dtype, int64_t{t} * layout.head_dim + f);
        };
      });
    }
    const int begin = max(own_begin, row.first_seen);
    run(begin, min(end, sequence.first_slot), [&](int slot) {
      return [&, slot](Side side, int f) { return tail_value(step, sequence, side, head, slot, f); };
    });
    run(max(begin, sequence.first_slot), end, [&](int slot) {
      return [&, slot](Side side, int f) { return brought_value(step, sequence, side, head, slot, f); };
    });
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
  for (int i = threadIdx.x; i < count; i += kFinishThreads) {
    memory.weights[i] = part(i)[0];
    memory.parts[i] = part(i)[1];
  }
  __syncthreads();
  float maximum = -INFINITY, sum = 0;
  for (int i = 0; i < count; ++i) maximum = fmaxf(maximum, memory.weights[i]);
  if (maximum == -INFINITY) return;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kFinishThreads)
    memory.weights[i] = weight_of(memory.weights[i], maximum);
  __syncthreads();
  for (int i = 0; i < count; ++i) sum = fmaf(memory.parts[i], memory.weights[i], sum);
  sum_by_teams(dim, memory.scratch, memory.features, [&](int f, int team, int teams) {
    float total = 0;
#pragma unroll 8
    for (int i = team; i < count; i += teams) total = fmaf(part(i)[2 + f], memory.weights[i], total);
    return total;
  });
  sum_by_teams(head_dim, memory.scratch, memory.values, [&](int f, int team, int teams) {
    float x = team == 0 && value.mean != nullptr ? value.mean[offset + f] * sum : 0.0f;
    if (value.decode == nullptr) return team == 0 && offset + f < dim ? x + memory.features[offset + f] : x;
#pragma unroll 8
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

// The row that the step brings becomes one of its sequence's incomplete page: for one head, by all threads.
__device__ void write_tail(const StepView& step, const DeviceRow& row, const DeviceSequence& sequence,
                           int head) {
  const DeviceLayout& layout = *step.layout;
  const int dim = layout.head_dim, tokens = layout.page_tokens;
  const int end = sequence.first_slot + sequence.num_rows;
  if (sequence.tail == nullptr || row.slot / tokens != end / tokens) return;  // or the page is complete
  for (int i = threadIdx.x; i < 2 * dim; i += kFinishThreads) {
    const Side side = i < dim ? Side::kKey : Side::kValue;
    store_value(sequence.tail + rows_of(layout, step.bank, side, head).tail_offset, layout.dtype,
                int64_t{row.slot % tokens} * dim + i % dim,
                brought_value(step, sequence, side, head, row.slot, i % dim));
  }
}

// Grid: (row, query head). The bound keeps registers few enough that such a block can be launched.
__global__ void __launch_bounds__(kFinishThreads)
    finish_rows(StepView step, StepExtents extents, Partials partials, float* softmax, bool write_tails) {
  LOWKEY_SHARED(float, shared);
  const int index = step.first_row + blockIdx.x, dim = step.layout->head_dim;
  const int head = blockIdx.y / step.group, g = blockIdx.y % step.group;
  const DeviceRow row = step.rows[index];
  FinishMemory memory{.features = shared, .scratch = shared + extents.max_dim};
  memory.values = memory.scratch + kTeams * extents.max_dim;
  memory.sums = memory.values + dim;
  memory.scores = memory.sums + dim;
  memory.weights = memory.scores + extents.exact_tokens;
  memory.parts = memory.weights + merged_at_once(extents.max_states);
  const int64_t query = int64_t{index} * step.num_q_heads + blockIdx.y;
  for (int f = threadIdx.x; f < dim; f += kFinishThreads) memory.sums[f] = 0;
  RowState state{memory.sums};
  for (int begin = 0, end; begin < row.num_states; begin = end) {
    for (end = begin + 1; end < row.num_states && end - begin < kMostMerged &&
                          step.pieces[row.first_piece + end] == step.pieces[row.first_piece + begin];)
      ++end;
    merge_segment(step, row, head, g, begin, end, partials, memory, state);
  }
  const DeviceSequence& sequence = step.sequences[row.sequence];
  merge_exact(step, {step, row, sequence, head}, query, memory, state);
  for (int f = threadIdx.x; f < dim; f += kFinishThreads)
    step.out[query * dim + f] = memory.sums[f] / state.sum;
  if (softmax != nullptr && threadIdx.x == 0) {
    softmax[2 * query] = state.maximum;
    softmax[2 * query + 1] = 1.0f / state.sum;
  }
  if (write_tails && g == 0) write_tail(step, row, sequence, head);
}

}  // namespace

void launch_finish_rows(cudaStream_t stream, const StepView& step, const StepExtents& extents,
                        const Partials& partials, float* softmax, bool write_tails) {
  const size_t floats = size_t(1 + kTeams) * extents.max_dim + 2 * step.head_dim + extents.exact_tokens +
                        2 * merged_at_once(extents.max_states);
  launch(finish_rows, {dim3(step.num_rows, step.num_q_heads), dim3(kFinishThreads), floats * sizeof(float)},
         stream, step, extents, partials, softmax, write_tails);
}

}  // namespace lowkey::kernels::cuda
