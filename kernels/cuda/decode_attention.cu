#include "kernels/cuda/decode_attention.h"

#include "kernels/cuda/decode_warp.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_codes.h"
#include "kernels/cuda/page_ring.h"

namespace lowkey::kernels::cuda {
namespace {

// One block per multiprocessor, of as many warps as its shared memory holds rings for.
constexpr int kMaxWarps = 12;
constexpr uint32_t kHeaderBytes = 1024;  // the table of wide codes, barriers

// Where a warp is in its items.
struct Cursor {
  const StepView& step;
  const FastStep& fast;
  const FastPlan* plans;  // fast.plans, or what the block has of them
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
    return plans[item.head * fast.num_levels + levels - 1];
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

// Plans lie in shared memory where the rings leave room: 208 bytes per head and level, 1.7 KB of the 7 KB
// that 12 rings of 4-bit pages leave at d = 128, and no warp goes for them. Every page's copy begins with its
// plan, and every product with where its codes lie. The first level cache has them too, but it is only what
// is left of 256 KB beside the rings, and a round's queries (2 KB of each item) would fill it.
template <FastKind kKind, int kTile, int kGroups>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)
    decode_attention(StepView step, FastStep fast, ItemList items, Partials partials, int own_plans) {
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
  auto* plans = reinterpret_cast<FastPlan*>(shared + kHeaderBytes +
                                            num_warps * warp_bytes<kKind, kTile>(fast.stage_bytes));
  copy_plans(plans, fast.plans, own_plans);
  __syncthreads();
  const Tables tables(values);
  PageRing<WarpTeam, kStages> ring(ring_memory, fast.stage_bytes, barriers);
  DecodeWarp<kKind, kTile, kGroups> attention{{tables, wide_table, *weights, fast.page_tokens}};

  // Neighbouring items go to different multiprocessors, so that few of them still use all.
  Cursor fetch{step,
               fast,
               own_plans > 0 ? plans : fast.plans,
               items.items,
               items.size(),
               static_cast<int>(gridDim.x) * num_warps,
               static_cast<int>(warp * gridDim.x + blockIdx.x)};
  fetch.load();
  Cursor here = fetch;
  const auto fill_next = [&] {
    if (fetch.ended()) return ring.fill_nothing();
    ring.fill(fetch.plan(), fetch.slabs());
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
      sync_warp();
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
  const uint32_t bytes = warp_bytes<kKind, kTile>(fast.stage_bytes),
                 room = limits.shared_bytes - kHeaderBytes;
  const int warps = min(kMaxWarps, static_cast<int>(room / bytes));
  const int blocks = min(limits.multiprocessors, items.most);
  const uint32_t plan_bytes = fast.num_plans * static_cast<uint32_t>(sizeof(FastPlan));
  const bool fit = warps * bytes + plan_bytes <= room;
  launch(decode_attention<kKind, kTile, kGroups>,
         {dim3(blocks), dim3(warps * kWarpSize), kHeaderBytes + warps * bytes + (fit ? plan_bytes : 0)},
         stream, step, fast, items, partials, fit ? fast.num_plans : 0);
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
