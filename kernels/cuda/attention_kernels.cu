#include "kernels/cuda/attention_kernels.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_codes.h"
#include "kernels/cuda/softmax_math.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTile = 16;          // tokens decoded at a time
constexpr int kItemBlocks = 2112;  // enough to fill a device

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

}  // namespace

void launch_attend_pages(cudaStream_t stream, const StepView& step, const ItemList& items,
                         const StepExtents& extents, const Partials& partials) {
  const size_t floats = size_t(2 * step.group + kTile) * extents.max_dim + size_t(step.group) * (kTile + 3);
  launch(attend_pages, {dim3(min(items.most, kItemBlocks)), dim3(kThreads), floats * sizeof(float)}, stream,
         step, items, extents.max_dim, partials);
}

}  // namespace lowkey::kernels::cuda
