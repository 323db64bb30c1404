#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_codes.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 128;

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

void launch_observe(cudaStream_t stream, const StepView& step, const ObserverView& observer, int num_slots,
                    int num_kv_heads, const float* softmax) {
  launch(observe, {dim3(ceil_div(num_slots, kThreads), num_kv_heads), dim3(kThreads)}, stream, step, observer,
         num_slots, softmax);
}

}  // namespace lowkey::kernels::cuda
