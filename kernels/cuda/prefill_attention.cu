#include "kernels/cuda/prefill_attention.h"

#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_ring.h"
#include "kernels/cuda/prefill_warp.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kStages = 2;
constexpr int kWarpsMost = 8;
// The header: bf16 of all 8-bit codes, barriers, plans of the head at all levels.
constexpr uint32_t kBarriersAt = 512, kPlansAt = 1024, kHeaderBytes = 2048;
static_assert(kPlansAt + kMaxLevels * sizeof(FastPlan) <= kHeaderBytes);

// One block and its tile of rows.
template <bool kBytes, int kGroups>
struct PrefillBlock {
  using Warp = PrefillWarp<kBytes, kGroups>;
  using Tile = typename Warp::Tile;

  const StepView& step;
  const PrefillTile& tile;
  const DeviceSequence& sequence;
  const int head;
  Warp& warp;
  PageRing<BlockTeam, kStages>& ring;
  const Expander& expander;
  Tile* const tiles;      // two
  FastPlan* const plans;  // of the segment, in shared memory
  int page_tokens = step.layout->page_tokens;
  int first_slot = sequence.first_slot + tile.first_row - sequence.first_row;

  __device__ int slot_of(int token) const { return first_slot + token; }
  __device__ int page_start(int token) const { return slot_of(token) / page_tokens * page_tokens; }
  __device__ int first_seen(int token) const { return step.rows[tile.first_row + token].first_seen; }

  __device__ void attend_segment(const DeviceSegment& segment, bool last) {
    const DeviceLayout& layout = *segment.layout;
    const DeviceMap& map = step.maps[segment.map];
    // Pages have a multiple of 32 tokens (FastPlan), not always of a tile's.
    const int tokens = layout.page_tokens, step_tokens = tokens % kPrefillTile == 0 ? kPrefillTile : 32;
    const int begin = segment.own ? first_seen(0) / tokens : 0;
    const int end = segment.own ? slot_of(tile.num_rows - 1) / tokens : segment.num_pages;
    if (begin >= end) return;
    __syncthreads();  // the last segment's plans are not read any more
    copy_plans(plans, map.plans + head * layout.num_levels, layout.num_levels);
    __syncthreads();
    const auto plan_of = [&](int page) -> const FastPlan& {
      return plans[(segment.levels == nullptr ? layout.num_levels : segment.levels[page]) - 1];
    };
    const FastPlan& whole = plans[layout.num_levels - 1];
    const int bank = bank_of(step, segment);
    if (!warp.idle()) warp.take_queries(vector_of(layout, bank, Side::kKey, head), whole.key);
    warp.clear();
    const Seen sees =
        warp.seen([&](int token) { return max(segment.sink_tokens, segment.own ? first_seen(token) : 0); },
                  [&](int token) { return segment.own ? page_start(token) : end * tokens; });

    Expander here = expander;
    here.page_tokens = tokens;
    const auto fill = [&](int page) {
      if (page >= end) return ring.fill_nothing();
      ring.fill(plan_of(page), segment.slabs + int64_t{page} * kMaxSlabs);
    };
    fill(begin);
    fill(begin + 1);
    const int per_page = tokens / step_tokens, steps = (end - begin) * per_page;
    const std::byte* stage = ring.wait();
    tiles[0].expand(here, plan_of(begin), stage, 0, step_tokens);
    __syncthreads();
    for (int i = 0; i < steps; ++i) {
      const int next = i + 1, page = begin + next / per_page;
      if (next < steps) {
        if (next % per_page == 0) {
          ring.done();
          fill(page + 1);
          stage = ring.wait();
        }
        tiles[next % 2].expand(here, plan_of(page), stage, next % per_page * step_tokens, step_tokens);
      }
      warp.template attend<false>(tiles[i % 2], begin * tokens + i * step_tokens, step_tokens,
                                  whole.value.num_groups, sees);
      __syncthreads();
    }
    ring.done();
    ring.skip();  // what was asked for last is nothing
    warp.end_segment(vector_of(layout, bank, Side::kValue, head), whole.value, last);
  }

  // Tokens [0, count) of exact rows, the first of which is slot `first`.
  template <class Read>
  __device__ void attend_exact(int first, int count, const Seen& sees, const Read& read) {
    for (int at = 0; at < count; at += kPrefillTile) {
      const int here = min(kPrefillTile, count - at);
      tiles[0].fill_exact(here, step.head_dim,
                          [&](Side side, int token, int f) { return read(side, at + token, f); });
      __syncthreads();
      warp.template attend<true>(tiles[0], first + at, here, kGroups, sees);
      __syncthreads();
    }
  }
  __device__ void attend_sink(const DeviceSegment& segment) {
    const DeviceLayout& layout = *segment.layout;
    const std::byte* slab = segment.slabs[layout.num_levels];
    const Seen sees =
        warp.seen([&](int token) { return segment.own ? first_seen(token) : 0; },
                  [&](int token) { return segment.own && page_start(token) == 0 ? 0 : segment.sink_tokens; });
    attend_exact(0, segment.sink_tokens, sees, [&](Side side, int token, int f) {
      return load_value(slab + rows_of(layout, bank_of(step, segment), side, head).sink_offset, layout.dtype,
                        int64_t{token} * layout.head_dim + f);
    });
  }

  __device__ void run() {
    const int segments = sequence.num_segments;
    for (int s = 0; s < segments; ++s)
      attend_segment(step.segments[sequence.first_segment + s], s == segments - 1);
    if (!warp.idle()) warp.take_exact_queries();
    for (int s = 0; s < segments; ++s) {
      const DeviceSegment& segment = step.segments[sequence.first_segment + s];
      const bool any = !segment.own || page_start(tile.num_rows - 1) > 0;
      if (segment.sink_tokens > 0 && any) attend_sink(segment);
    }
    const int base = max(page_start(0), first_seen(0)), end = slot_of(tile.num_rows - 1) + 1;
    const Seen sees = warp.seen([&](int token) { return max(page_start(token), first_seen(token)); },
                                [&](int token) { return slot_of(token) + 1; });
    attend_exact(base, end - base, sees, [&](Side side, int token, int f) {
      return exact_value(step, sequence, side, head, base + token, f);
    });
    warp.store();
  }
};

template <bool kBytes, int kGroups>
constexpr uint32_t query_bytes() {
  return kMs * kGroups * kWarpSize * sizeof(uint4);
}
template <bool kBytes, int kGroups>
constexpr uint32_t shared_bytes(int warps, uint32_t stage_bytes) {
  return kHeaderBytes + warps * (query_bytes<kBytes, kGroups>() + sizeof(RowNumbers)) +
         2 * static_cast<uint32_t>(sizeof(KeyValueTile<kBytes, kGroups>)) + kStages * stage_bytes;
}

// Grid: (KV head, tile).
template <bool kBytes, int kGroups>
__global__ void __launch_bounds__(kWarpsMost* kWarpSize, 1)
    prefill_attention(StepView step, const PrefillTile* all_tiles, uint32_t stage_bytes) {
  LOWKEY_SHARED(std::byte, shared);
  using Block = PrefillBlock<kBytes, kGroups>;
  using Tile = typename Block::Tile;
  const EmbeddedTables& values = *step.layout->tables;
  auto* wide_table = reinterpret_cast<uint16_t*>(shared);
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    wide_table[i] = to_bf16(embedded_value(values, static_cast<uint32_t>(i), 8));
  std::byte* queries = shared + kHeaderBytes;
  const int warps = blockDim.x / kWarpSize, own = threadIdx.x / kWarpSize;
  auto* rows = reinterpret_cast<RowNumbers*>(queries + warps * query_bytes<kBytes, kGroups>());
  auto* tiles = reinterpret_cast<std::byte*>(rows + warps);
  const PrefillTile tile = all_tiles[blockIdx.y];
  const Expander expander{QuadTables(values), wide_table, step.layout->page_tokens};
  typename Block::Warp warp(step, tile, static_cast<int>(blockIdx.x),
                            reinterpret_cast<uint4*>(queries + own * query_bytes<kBytes, kGroups>()),
                            rows[own]);
  warp.begin();
  PageRing<BlockTeam, kStages> ring(tiles + 2 * sizeof(Tile), stage_bytes,
                                    reinterpret_cast<uint64_t*>(shared + kBarriersAt));
  Block block{step,
              tile,
              step.sequences[tile.sequence],
              static_cast<int>(blockIdx.x),
              warp,
              ring,
              expander,
              reinterpret_cast<Tile*>(tiles),
              reinterpret_cast<FastPlan*>(shared + kPlansAt)};
  block.run();
}

template <class Run>
void with_kind(const PrefillShape& shape, const Run& run) {
  if (shape.narrow) {
    shape.max_groups <= 4 ? run(std::true_type(), std::integral_constant<int, 4>())
                          : run(std::true_type(), std::integral_constant<int, 8>());
  } else {
    shape.max_groups <= 4 ? run(std::false_type(), std::integral_constant<int, 4>())
                          : run(std::false_type(), std::integral_constant<int, 8>());
  }
}

}  // namespace

void choose_warps(PrefillShape& shape, int64_t rows, const DeviceLimits& limits) {
  shape.warps = 0;
  with_kind(shape, [&](auto bytes, auto groups) {
    for (const int warps : {kWarpsMost, kWarpsMost / 2}) {
      if (shared_bytes<bytes(), groups()>(warps, shape.stage_bytes) > limits.shared_bytes) continue;
      const bool fills = rows > int64_t{limits.multiprocessors} * warps * kWarpRows;
      if (shape.warps == 0 || !(rows > int64_t{limits.multiprocessors} * shape.warps * kWarpRows))
        shape.warps = warps;
      if (fills) break;
    }
  });
}

void launch_prefill_attention(cudaStream_t stream, const StepView& step, const PrefillShape& shape,
                              const PrefillTile* tiles, int num_tiles, int num_kv_heads) {
  with_kind(shape, [&](auto bytes, auto groups) {
    launch(prefill_attention<bytes(), groups()>,
           {dim3(num_kv_heads, num_tiles), dim3(shape.warps * kWarpSize),
            shared_bytes<bytes(), groups()>(shape.warps, shape.stage_bytes)},
           stream, step, tiles, shape.stage_bytes);
  });
}

}  // namespace lowkey::kernels::cuda
