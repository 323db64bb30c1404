#include "kernels/cuda/query_kernels.h"

#include "kernels/cuda/code_tables.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMapRows = 8;  // rows that share a read of the map
// Rounding: so many lanes for each row, of which four share a group's words.
constexpr int kRowLanes = kThreads / kMapRows;

// Feature (of a group) that is element i of a lane's word, for the lane's number in its four.
__device__ int feature_of(CodeForm form, int quarter, int i) {
  if (form == CodeForm::kCrumbs) return quarter / 2 * 8 + quarter % 2 + 2 * i;
  if (form == CodeForm::kFull) return i / 2 * 8 + quarter * 2 + i % 2;
  return quarter * 4 + i;
}

// One query's features in words of four: bytes relative to the largest of them, or 16 bits each.
struct Rounding {
  const FastSide& side;
  const float* mapped;
  const float* scale;  // of the codes' features; null: 1
  int quarter;

  static __device__ bool narrow(CodeForm form) {
    return form == CodeForm::kCrumbs || form == CodeForm::kNibbles;
  }
  __device__ CodeForm form(int group) const {
    return group < side.num_groups ? side.forms[group] : CodeForm::kNone;
  }
  // In units of the codes.
  __device__ float value(int group, int i) const {
    const int f = group * kGroupFeatures + feature_of(side.forms[group], quarter, i);
    return scale == nullptr ? mapped[f] : mapped[f] * scale[f];
  }
  __device__ float largest(int group) const {
    float most = 0;
    for (int i = 0; i < 4 && narrow(form(group)); ++i)
      most = fmaxf(most, fabsf(value(group, i)) / unit_of(form(group)));
    return most;
  }
  // `inverse`: of the unit of the row's bytes.
  __device__ void write(int group, float inverse, uint32_t* words) const {
    const CodeForm here = form(group);
    uint32_t first = 0, second = 0;
    for (int i = 0; i < 4 && here != CodeForm::kNone; ++i) {
      if (narrow(here)) {
        const int rounded = static_cast<int>(rintf(value(group, i) / unit_of(here) * inverse));
        first |= (static_cast<uint32_t>(rounded) & 0xff) << 8 * i;
        second |= (static_cast<uint32_t>(-rounded) & 0xff) << 8 * i;
      } else {
        const uint32_t bits = here == CodeForm::kFull ? to_bf16(value(group, i)) : to_f16(value(group, i));
        (i < 2 ? first : second) |= bits << 16 * (i % 2);
      }
    }
    words[0] = first;
    words[1] = second;
  }
};

// `mapped`: [kMapRows][pitch] of one query head. All threads call it.
__device__ void round_rows(const StepView& step, const FastStep& fast, const DeviceVector& key, int head,
                           int first, int rows, const float* mapped, int pitch) {
  static_assert(kMaxFastGroups % (kRowLanes / 4) == 0);
  const int own = threadIdx.x / kRowLanes, lane = threadIdx.x % kRowLanes;
  const int query_head = blockIdx.y, heads = step.num_q_heads / step.group;
  const Rounding rounding{fast.plans[head * fast.num_levels + fast.num_levels - 1].key, mapped + own * pitch,
                          key.scale, lane % 4};
  float largest = 0;
  for (int g = lane / 4; g < kMaxFastGroups; g += kRowLanes / 4)
    largest = fmaxf(largest, rounding.largest(g));
  largest = max_over<kRowLanes>(largest);
  if (own >= rows) return;
  const float inverse = largest > 1e-30f ? 127 / largest : 0.0f;
  const int64_t target = (int64_t{first + own} * heads + head) * kFastQueries + query_head % step.group;
  if (lane == 0) fast.factors[target] = largest / 127;
  for (int g = lane / 4; g < kMaxFastGroups; g += kRowLanes / 4)
    rounding.write(g, inverse, fast.queries[target].words[g][lane % 4]);
}

// Grid: (tiles of rows, query heads).
__global__ void map_queries(StepView step, DeviceMap map, FastStep fast) {
  LOWKEY_SHARED(float, queries);  // [head_dim][kMapRows], then, to be rounded, [kMapRows][pitch]
  const DeviceLayout& layout = *map.layout;
  const int dim = layout.head_dim, query_head = blockIdx.y, head = query_head / step.group;
  const DeviceVector& vector = vector_of(layout, (map.own ? step.bank : map.bank), Side::kKey, head);
  const int begin = blockIdx.x * kMapRows, rows = min(kMapRows, step.num_rows - begin);
  const int first = step.first_row + begin, pitch = map.stride + 1;
  const int offset = (head - vector.layout.head) * dim;
  float* const mapped = queries + dim * kMapRows;
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
      if (fast.kind != FastKind::kNone) {
        mapped[r * pitch + j] = sums[r];
      } else if (r < rows) {
        map.queries[target(r) * map.stride + j] = sums[r];
      }
    }
  }
  if (fast.kind == FastKind::kNone) return;
  __syncthreads();
  round_rows(step, fast, vector, head, first, rows, mapped, pitch);
}

}  // namespace

void launch_map_queries(cudaStream_t stream, const StepView& step, const DeviceMap& map,
                        const FastStep& fast) {
  size_t floats = size_t(step.head_dim) * kMapRows;
  if (fast.kind != FastKind::kNone) floats += size_t(kMapRows) * (map.stride + 1);
  launch(map_queries,
         {dim3(ceil_div(step.num_rows, kMapRows), step.num_q_heads), dim3(kThreads), floats * sizeof(float)},
         stream, step, map, fast);
}

}  // namespace lowkey::kernels::cuda
