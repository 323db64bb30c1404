#include "kernels/cuda/decode_attention.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_codes.h"
#include "kernels/cuda/score_tile.h"

namespace lowkey::kernels::cuda {
namespace {

// One block per multiprocessor, of as many warps as its shared memory holds rings for.
constexpr int kMaxWarps = 12;
constexpr uint32_t kHeaderBytes = 1024;  // the table of wide codes, barriers

__device__ float unit_of(CodeForm form) {
  return form == CodeForm::kCrumbs ? kCrumbUnit : kNibbleUnit;
}

// Feature (of a group) that is element i of a lane's word, for the lane's number in its four.
__device__ int feature_of(CodeForm form, int quarter, int i) {
  if (form == CodeForm::kCrumbs) return quarter / 2 * 8 + quarter % 2 + 2 * i;
  if (form == CodeForm::kFull) return i / 2 * 8 + quarter * 2 + i % 2;
  return quarter * 4 + i;
}

// Grid: (row, KV head); 32 threads: four lanes of each of kFastQueries queries.
__global__ void round_queries(StepView step, DeviceMap map, FastStep fast) {
  const int query = threadIdx.x / 4, quarter = threadIdx.x % 4, head = blockIdx.y;
  const DeviceLayout& layout = *map.layout;
  const DeviceVector& key = vector_of(layout, map.own ? step.bank : map.bank, Side::kKey, head);
  const FastSide& side = fast.plans[head * fast.num_levels + fast.num_levels - 1].key;
  const int64_t row = step.first_row + blockIdx.x;
  const float* mapped = map.queries + (row * step.num_q_heads + head * step.group + query) * map.stride;
  // In units of the codes.
  const auto value = [&](int group, int i) {
    const int f = group * kGroupFeatures + feature_of(side.forms[group], quarter, i);
    const float x = query < step.group ? mapped[f] : 0.0f;
    return key.scale == nullptr ? x : x * key.scale[f];
  };
  const auto narrow = [&](CodeForm form) { return form == CodeForm::kCrumbs || form == CodeForm::kNibbles; };
  float largest = 0;
  for (int g = 0; g < side.num_groups; ++g) {
    if (!narrow(side.forms[g])) continue;
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(value(g, i)) / unit_of(side.forms[g]));
  }
  largest = max_over<4>(largest);
  const float inverse = largest > 1e-30f ? 127 / largest : 0.0f;
  const int64_t target = (row * gridDim.y + head) * kFastQueries + query;
  if (quarter == 0) fast.factors[target] = largest / 127;
  for (int g = 0; g < kMaxFastGroups; ++g) {
    uint32_t* words = fast.queries[target].words[g][quarter];
    const CodeForm form = g < side.num_groups ? side.forms[g] : CodeForm::kNone;
    uint32_t first = 0, second = 0;
    for (int i = 0; i < 4 && form != CodeForm::kNone; ++i) {
      if (narrow(form)) {
        const int rounded = static_cast<int>(rintf(value(g, i) / unit_of(form) * inverse));
        first |= (static_cast<uint32_t>(rounded) & 0xff) << 8 * i;
        second |= (static_cast<uint32_t>(-rounded) & 0xff) << 8 * i;
      } else {
        const uint32_t bits = form == CodeForm::kFull ? to_bf16(value(g, i)) : to_f16(value(g, i));
        (i < 2 ? first : second) |= bits << 16 * (i % 2);
      }
    }
    words[0] = first;
    words[1] = second;
  }
}

// Where a warp is in its items.
struct Cursor {
  const StepView& step;
  const FastStep& fast;
  const DeviceItem* items;
  int num_items, stride;
  int index;  // of the item
  int page = 0;
  DeviceItem item;

  __device__ void load() {
    if (index < num_items) item = items[index];
    page = 0;
  }
  __device__ bool ended() const { return index >= num_items; }
  __device__ void advance() {
    if (++page < item.num_pages) return;
    index += stride;
    load();
  }
  __device__ const DeviceSegment& segment() const { return step.segments[item.segment]; }
  __device__ std::byte* const* slabs() const {
    return segment().slabs + int64_t{item.first_page + page} * kMaxSlabs;
  }
  __device__ const FastPlan& plan() const {
    const DeviceSegment& here = segment();
    const int levels = here.levels == nullptr ? fast.num_levels : here.levels[item.first_page];
    return fast.plans[item.head * fast.num_levels + levels - 1];
  }
};

// Small stages: more of them, so that enough bytes are on their way.
constexpr int stages_of(FastKind kind) {
  return kind == FastKind::kCrumbs ? 3 : 2;
}

template <FastKind kKind, int kTile>
__host__ __device__ constexpr uint32_t warp_bytes(uint32_t stage_bytes) {
  return (static_cast<uint32_t>(sizeof(WeightRows<kTile>)) + 127) / 128 * 128 +
         stages_of(kKind) * stage_bytes;
}

template <FastKind kKind, int kTile, int kGroups>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)
    decode_attention(StepView step, FastStep fast, ItemList items, Partials partials) {
  LOWKEY_SHARED(std::byte, shared);
  constexpr int kStages = stages_of(kKind);
  const int warp = threadIdx.x / kWarpSize, num_warps = blockDim.x / kWarpSize;
  auto* wide_table = reinterpret_cast<uint16_t*>(shared);
  auto* barriers = reinterpret_cast<uint64_t*>(shared + kHeaderBytes / 2) + warp * kStages;
  std::byte* own = shared + kHeaderBytes + warp * warp_bytes<kKind, kTile>(fast.stage_bytes);
  auto* weights = reinterpret_cast<WeightRows<kTile>*>(own);
  std::byte* ring_memory = own + warp_bytes<kKind, kTile>(0);
  const EmbeddedTables& values = *step.layout->tables;
  if (kKind == FastKind::kMixed) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
      wide_table[i] = to_f16(embedded_value(values, static_cast<uint32_t>(i), 8));
  }
  __syncthreads();
  const Tables tables(values);
  StageRing<kStages> ring(ring_memory, fast.stage_bytes, barriers);
  Attention<kKind, kTile, kGroups> attention{tables, wide_table, *weights, fast.page_tokens};

  // Neighbouring items go to different multiprocessors, so that few of them still use all.
  Cursor fetch{step,
               fast,
               items.items,
               items.size(),
               static_cast<int>(gridDim.x) * num_warps,
               static_cast<int>(warp * gridDim.x + blockIdx.x)};
  fetch.load();
  Cursor here = fetch;
  const auto fill_next = [&] {
    if (fetch.ended()) return ring.fill_nothing();
    const FastPlan& plan = fetch.plan();
    ring.fill(plan.key.chunks, plan.value.chunks, fetch.slabs());
    fetch.advance();
  };
  for (int i = 0; i < kStages; ++i) fill_next();
  while (!here.ended()) {
    const DeviceItem item = here.item;
    const DeviceSegment& segment = here.segment();
    const FastPlan& plan = here.plan();
    const int first_seen = segment.own ? step.rows[item.row].first_seen : 0;
    attention.begin(step, fast, item, step.maps[segment.map]);
    for (int p = item.first_page; p < item.first_page + item.num_pages; ++p) {
      const std::byte* stage = ring.wait();
      const int masked = max(p == 0 ? segment.sink_tokens : 0, first_seen - p * fast.page_tokens);
      attention.page(plan, stage, masked);
      ring.done();
      fill_next();
      here.advance();
    }
    attention.store(step, vector_of(*segment.layout, bank_of(step, segment), Side::kValue, item.head), item,
                    partials);
  }
}

template <FastKind kKind, int kTile, int kGroups>
void launch_kind(cudaStream_t stream, const StepView& step, const FastStep& fast, const ItemList& items,
                 const DeviceLimits& limits, const Partials& partials) {
  const uint32_t bytes = warp_bytes<kKind, kTile>(fast.stage_bytes);
  const int warps = min(kMaxWarps, static_cast<int>((limits.shared_bytes - kHeaderBytes) / bytes));
  const int blocks = min(limits.multiprocessors, items.most);
  launch(decode_attention<kKind, kTile, kGroups>,
         {dim3(blocks), dim3(warps * kWarpSize), kHeaderBytes + warps * bytes}, stream, step, fast, items,
         partials);
}

template <FastKind kKind>
void launch_shape(cudaStream_t stream, const StepView& step, const FastStep& fast, const ItemList& items,
                  const DeviceLimits& limits, const Partials& partials) {
  const auto run = [&](auto kernel) { kernel(stream, step, fast, items, limits, partials); };
  const bool wide_tile = fast.page_tokens % 64 == 0;
  if (fast.max_groups <= 4) {
    wide_tile ? run(launch_kind<kKind, 64, 4>) : run(launch_kind<kKind, 32, 4>);
  } else {
    wide_tile ? run(launch_kind<kKind, 64, 8>) : run(launch_kind<kKind, 32, 8>);
  }
}

}  // namespace

void launch_round_queries(cudaStream_t stream, const StepView& step, const DeviceMap& map,
                          const FastStep& fast, int num_kv_heads) {
  launch(round_queries, {dim3(step.num_rows, num_kv_heads), dim3(kWarpSize)}, stream, step, map, fast);
}

bool fits_fast_attention(FastKind kind, uint32_t stage_bytes, const DeviceLimits& limits) {
  return kHeaderBytes + warp_bytes<FastKind::kMixed, 64>(stage_bytes) +
             (stages_of(kind) - stages_of(FastKind::kMixed)) * stage_bytes <=
         limits.shared_bytes;
}

void launch_decode_attention(cudaStream_t stream, const StepView& step, const FastStep& fast,
                             const ItemList& items, const DeviceLimits& limits, const Partials& partials) {
  if (items.most == 0) return;
  switch (fast.kind) {
    case FastKind::kCrumbs:
      return launch_shape<FastKind::kCrumbs>(stream, step, fast, items, limits, partials);
    case FastKind::kNibbles:
      return launch_shape<FastKind::kNibbles>(stream, step, fast, items, limits, partials);
    case FastKind::kMixed:
      return launch_shape<FastKind::kMixed>(stream, step, fast, items, limits, partials);
    case FastKind::kFull:
      return launch_shape<FastKind::kFull>(stream, step, fast, items, limits, partials);
    case FastKind::kNone:
      break;
  }
}

}  // namespace lowkey::kernels::cuda
