#include "kernels/cuda/cuda_attention.h"

#include <algorithm>
#include <cstddef>

#include "base/check.h"
#include "kernels/cuda/attention_split.h"
#include "kernels/cuda/encode_kernels.h"
#include "kernels/ops/attention_window.h"
#include "kernels/ops/exact_pages.h"

namespace lowkey::kernels::cuda {
namespace {

// Bounds of scratch memory: partial results and features are made in parts where a step has more.
constexpr size_t kMaxPartialBytes = size_t{256} << 20;
constexpr size_t kMaxFeatureBytes = size_t{64} << 20;
constexpr size_t kLeastUploadBytes = size_t{64} << 10;  // steps of many sizes fit every slot

}  // namespace

// What a step becomes, on the host; `image` has the arrays.
struct CudaAttention::Plan {
  DeviceImage image;
  StepView view;
  std::vector<DeviceSequence> sequences;
  std::vector<DeviceSegment> segments;
  std::vector<std::array<size_t, 2>> segment_arrays;  // offsets of slabs and levels
  std::vector<size_t> sequence_slabs;                 // offsets
  std::vector<DeviceRow> rows;
  std::vector<int> pieces;
  std::vector<std::vector<DeviceItem>> pending;  // by map, of the wave at hand
  std::vector<DeviceItem> items;
  std::vector<DevicePage> pages;
  std::vector<DeviceMap> maps;
  std::vector<FastStep> fast;  // by map; kind kNone: the plain kernel
  std::vector<Wave> waves;
  StepExtents extents;
  std::vector<int> prefill;  // sequences
  PrefillShape prefill_shape;
  std::vector<PrefillTile> tiles;
  const PrefillTile* device_tiles = nullptr;
  const DeviceItem* device_items = nullptr;
  const DevicePage* device_pages = nullptr;
};

Result<CudaAttention> CudaAttention::create(std::shared_ptr<DevicePool> pool, cudaStream_t stream,
                                            LayoutCache& layouts, const DeviceLimits& limits) {
  CudaAttention attention(std::move(pool), stream, layouts, limits);
  for (int i = 0; i < kUploads; ++i) {
    LOWKEY_ASSIGN(event, Event::create());
    attention.uploads_.emplace_back(std::move(event));
  }
  return attention;
}

std::byte* CudaAttention::upload(const DeviceImage& image) {
  Upload* oldest = &uploads_[0];
  for (Upload& slot : uploads_) {
    if (slot.last_used > 0 && slot.content == image) {
      slot.last_used = ++uses_;
      return slot.device.data();
    }
    if (slot.last_used < oldest->last_used) oldest = &slot;
  }
  const Status copied = oldest->copied.synchronize();
  LOWKEY_CHECK(copied.ok(), "{}", copied.error().message);
  if (oldest->device.size() < image.size()) {
    const size_t room = std::max(kLeastUploadBytes, image.size() * 3 / 2);
    auto host = PinnedBuffer::create(room);
    LOWKEY_CHECK(host.ok(), "{}", host.error().message);
    auto device = DeviceBuffer::create(room);
    LOWKEY_CHECK(device.ok(), "{}", device.error().message);
    oldest->host = std::move(host).value();
    oldest->device = std::move(device).value();
  }
  image.write(oldest->host.data(), oldest->device.data());
  LOWKEY_CUDA_CHECK(cudaMemcpyAsync(oldest->device.data(), oldest->host.data(), image.size(),
                                    cudaMemcpyHostToDevice, stream_));
  oldest->copied.record(stream_);
  oldest->content = image;
  oldest->last_used = ++uses_;
  return oldest->device.data();
}

// Segments and pages of one sequence.
void CudaAttention::add_sequence(const AttentionStep& step, const SequenceSlice& sequence, Plan& plan) {
  const PageLayout& layout = *step.layout;
  const int tokens = layout.page_tokens, end = sequence.first_slot + sequence.num_rows;
  DeviceSequence device{.tail = sequence.tail,
                        .first_row = sequence.first_row,
                        .num_rows = sequence.num_rows,
                        .first_slot = sequence.first_slot,
                        .first_segment = static_cast<int>(plan.segments.size())};
  const auto add_slabs = [&](std::byte* const* slabs, int pages) {
    return plan.image.add(std::span<std::byte* const>(slabs, static_cast<size_t>(pages) * kMaxSlabs));
  };
  const auto map_of = [&](const PageLayout& page_layout, int bank, bool own) {
    const DeviceLayout* map_layout = layouts_.of(page_layout).device();
    const int stride = layouts_.of(page_layout).max_dim();
    for (size_t i = 0; i < plan.maps.size(); ++i) {
      const DeviceMap& map = plan.maps[i];
      if (map.layout == map_layout && map.own == own && (own || map.bank == bank)) return static_cast<int>(i);
    }
    plan.maps.push_back({.layout = map_layout,
                         .plans = layouts_.known(page_layout).fast(bank).plans,
                         .stride = stride,
                         .bank = own ? 0 : bank,
                         .own = own});
    plan.fast.push_back(fast_step(step, page_layout, bank));
    return static_cast<int>(plan.maps.size()) - 1;
  };
  const ArchivedPages* archive = sequence.archives == nullptr ? nullptr : &sequence.archives[step.bank];
  if (archive != nullptr && archive->num_pages > 0) {
    const LayoutTables& tables = layouts_.of(*archive->layout);
    const bool sink =
        archive->layout->sink_tokens > 0 && archive->slabs[archive->layout->sink_slab()] != nullptr;
    plan.segment_arrays.push_back({add_slabs(archive->slabs, archive->num_pages), 0});
    plan.segments.push_back({.layout = tables.device(),
                             .bank = archive->bank,
                             .map = map_of(*archive->layout, archive->bank, false),
                             .num_pages = archive->num_pages,
                             .sink_tokens = sink ? archive->layout->sink_tokens : 0});
    plan.extents.max_dim = std::max(plan.extents.max_dim, tables.max_dim());
    plan.extents.exact_tokens = std::max(plan.extents.exact_tokens, plan.segments.back().sink_tokens);
  }
  const int pages = end / tokens, seen = (end - 1) / tokens;
  const size_t slabs = add_slabs(sequence.slabs, pages);
  plan.sequence_slabs.push_back(slabs);
  if (seen > 0) {
    const LayoutTables& tables = layouts_.of(layout);
    const size_t levels = plan.image.add(std::span<const uint8_t>(sequence.page_levels, seen));
    plan.segment_arrays.push_back({slabs, levels});
    plan.segments.push_back({.layout = tables.device(),
                             .map = map_of(layout, step.bank, true),
                             .sink_tokens = layout.sink_tokens,
                             .own = true});
  }
  device.num_segments = static_cast<int>(plan.segments.size()) - device.first_segment;
  plan.sequences.push_back(device);
  if (!step.first_reader) return;
  for (int page = sequence.first_slot / tokens; page < pages; ++page)
    plan.pages.push_back({static_cast<int>(plan.sequences.size()) - 1, page});
}

// The fast kernel of a layout's bank, if there is one; without its queries.
FastStep CudaAttention::fast_step(const AttentionStep& step, const PageLayout& layout, int bank) const {
  // Observers want every row's softmax to the last digit.
  const bool observed = std::ranges::any_of(
      step.sequences, [](const SequenceSlice& slice) { return slice.observer != nullptr; });
  if (observed) return {};
  return layouts_.known(layout).fast_step(layout, bank, step.num_q_heads, limits_);
}

// Rows and items of the sequence added last.
void CudaAttention::add_rows(const AttentionStep& step, const SequenceSlice& sequence, Plan& plan) {
  const int heads = step.layout->num_kv_heads;
  const DeviceSequence& device = plan.sequences.back();
  struct Piece {
    int segment, first, count;
  };
  std::vector<Piece> pieces;
  const uint8_t* levels = sequence.page_levels;
  // Rows of one page see the same pages: as many as the fast kernel has room for are one item.
  const int together = step.window == 0 ? std::max(1, kFastQueries / (step.num_q_heads / heads)) : 1;
  const int split = split_tokens(sequence.first_slot + sequence.num_rows);
  for (int i = 0; i < sequence.num_rows; ++i) {
    const int slot = sequence.first_slot + i;
    DeviceRow row{.sequence = static_cast<int>(plan.sequences.size()) - 1,
                  .slot = slot,
                  .first_seen = first_seen(step, slot)};
    pieces.clear();
    for (int s = device.first_segment; s < device.first_segment + device.num_segments; ++s) {
      const bool own = plan.segments[s].own;
      const PageLayout& layout = own ? *step.layout : *sequence.archives[step.bank].layout;
      const int end = own ? slot / layout.page_tokens : sequence.archives[step.bank].num_pages;
      const int begin = own ? row.first_seen / layout.page_tokens : 0;
      for_each_piece(begin, end, split, layout.page_tokens, own ? levels : nullptr,
                     [&](int first, int count) {
                       pieces.push_back({s, first, count});
                     });
    }
    row.num_states = static_cast<int>(pieces.size());
    plan.extents.max_states = std::max(plan.extents.max_states, row.num_states);
    row.first_piece = static_cast<int>(plan.pieces.size());
    const int row_states = row.num_states * heads;
    const int since = std::min(i, slot % step.layout->page_tokens);  // rows of its page before it
    const int to_come =
        std::min(sequence.num_rows - i, step.layout->page_tokens - slot % step.layout->page_tokens);
    const bool first = since % together == 0;
    const size_t floats = size_t(plan.waves.back().num_states + row_states) * (step.num_q_heads / heads) *
                          (plan.extents.max_dim + 2);
    if (first && plan.waves.back().num_rows > 0 && floats * sizeof(float) > kMaxPartialBytes) end_wave(plan);
    Wave& wave = plan.waves.back();
    row.first_state = wave.num_states;
    for (const Piece& piece : pieces) plan.pieces.push_back(piece.segment);
    wave.num_states += row_states;
    DeviceItem item{.row = sequence.first_row + i, .state = row.first_state, .row_states = row_states};
    for (item.head = 0; item.head < heads; ++item.head) {
      for (const Piece& piece : pieces) {
        const int map = plan.segments[piece.segment].map;
        const bool fast = plan.fast[map].kind != FastKind::kNone;
        item.segment = piece.segment;
        item.first_page = piece.first;
        item.num_pages = piece.count;
        item.num_rows = fast ? std::min(together, to_come) : 1;
        if (first || !fast) plan.pending[map].push_back(item);
        ++item.state;
      }
    }
    ++wave.num_rows;
    plan.rows.push_back(row);
  }
}

// Whether the prefill kernel takes the sequence's rows: it depends on the sequence's own rows and pages.
bool CudaAttention::takes_prefill(const AttentionStep& step, const SequenceSlice& sequence) const {
  const PageLayout& layout = *step.layout;
  const auto fast = [&](const PageLayout& pages, int bank) {
    return layouts_.known(pages).fast(bank).kind != FastKind::kNone;
  };
  const ArchivedPages* archive = sequence.archives == nullptr ? nullptr : &sequence.archives[step.bank];
  return sequence.num_rows >= kPrefillRows && sequence.observer == nullptr &&
         step.num_q_heads / layout.num_kv_heads <= kPrefillGroups && layout.head_dim % kGroupFeatures == 0 &&
         layout.head_dim <= kMaxFastGroups * kGroupFeatures && fast(layout, step.bank) &&
         (archive == nullptr || archive->num_pages == 0 || fast(*archive->layout, archive->bank));
}

// One shape for all sequences of the step that the prefill kernel takes.
PrefillShape CudaAttention::prefill_shape(const AttentionStep& step) const {
  PrefillShape shape{.max_groups = step.layout->head_dim / kGroupFeatures, .narrow = true};
  int64_t rows = 0;
  for (const SequenceSlice& sequence : step.sequences) {
    if (!takes_prefill(step, sequence)) continue;
    rows += int64_t{sequence.num_rows} * step.num_q_heads;
    const auto add = [&](const PageLayout& layout, int bank) {
      const FastBank& fast = layouts_.known(layout).fast(bank);
      shape.max_groups = std::max(shape.max_groups, fast.max_groups);
      shape.narrow = shape.narrow && fast.narrow_keys;
      shape.stage_bytes = std::max(shape.stage_bytes, fast.stage_bytes);
    };
    add(*step.layout, step.bank);
    if (sequence.archives != nullptr && sequence.archives[step.bank].num_pages > 0)
      add(*sequence.archives[step.bank].layout, sequence.archives[step.bank].bank);
  }
  if (rows > 0) choose_warps(shape, rows, limits_);
  return shape;
}

void CudaAttention::add_prefill(const AttentionStep& step, const SequenceSlice& sequence, Plan& plan) {
  if (plan.waves.back().num_rows > 0) end_wave(plan);
  plan.waves.back().prefill = true;
  plan.waves.back().num_rows = sequence.num_rows;
  plan.prefill.push_back(static_cast<int>(plan.sequences.size()) - 1);
  for (int i = 0; i < sequence.num_rows; ++i) {
    const int slot = sequence.first_slot + i;
    plan.rows.push_back(
        {.sequence = plan.prefill.back(), .slot = slot, .first_seen = first_seen(step, slot)});
  }
  end_wave(plan);
}

// What has most to read first, so that little is left to wait for at the end.
void CudaAttention::make_tiles(const AttentionStep& step, Plan& plan) {
  const int group = step.num_q_heads / step.layout->num_kv_heads;
  const int tokens = kPrefillWarpRows * plan.prefill_shape.warps / group;
  for (const int index : plan.prefill) {
    const DeviceSequence& sequence = plan.sequences[index];
    for (int row = 0; row < sequence.num_rows; row += tokens)
      plan.tiles.push_back({index, sequence.first_row + row, std::min(tokens, sequence.num_rows - row)});
  }
  std::ranges::stable_sort(plan.tiles, [&](const PrefillTile& a, const PrefillTile& b) {
    return plan.rows[a.first_row].slot > plan.rows[b.first_row].slot;
  });
}

// The wave's items become launches, and the next one begins.
void CudaAttention::end_wave(Plan& plan) {
  Wave& wave = plan.waves.back();
  for (size_t map = 0; map < plan.maps.size(); ++map) {
    std::vector<DeviceItem>& items = plan.pending[map];
    if (items.empty()) continue;
    wave.batches.push_back(
        {static_cast<int>(map), static_cast<int>(plan.items.size()), static_cast<int>(items.size())});
    plan.items.insert(plan.items.end(), items.begin(), items.end());
    items.clear();
  }
  plan.waves.push_back({.first_row = wave.first_row + wave.num_rows});
}

void CudaAttention::make_plan(const AttentionStep& step, Plan& plan) {
  const PageLayout& layout = *step.layout;
  LOWKEY_CHECK(step.num_q_heads % layout.num_kv_heads == 0 &&
                   step.k.cols == layout.num_kv_heads * layout.head_dim &&
                   step.q.cols == step.num_q_heads * layout.head_dim,
               "{} query heads, {} KV heads of {}; q {}, k {} columns", step.num_q_heads, layout.num_kv_heads,
               layout.head_dim, step.q.cols, step.k.cols);
  check_window(step);
  plan.extents = {layouts_.of(layout).max_dim(), 0};
  for (const SequenceSlice& sequence : step.sequences) {
    LOWKEY_CHECK(sequence.observer == nullptr || is_exact(layout, layout.vector(step.bank, Side::kKey, 0)),
                 "slots of encoded pages are not observed: recipe {}, bank {}", layout.recipe, step.bank);
    LOWKEY_CHECK(
        sequence.first_row ==
            (plan.sequences.empty() ? 0 : plan.sequences.back().first_row + plan.sequences.back().num_rows),
        "rows of sequences are not consecutive: {}", sequence.first_row);
    add_sequence(step, sequence, plan);
  }
  plan.extents.exact_tokens += layout.sink_tokens + layout.page_tokens;
  plan.waves.push_back({});
  plan.pending.resize(plan.maps.size());
  plan.prefill_shape = prefill_shape(step);
  const std::vector<DeviceSequence> sequences = std::move(plan.sequences);
  plan.sequences.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    plan.sequences.push_back(sequences[i]);
    if (plan.prefill_shape.warps > 0 && takes_prefill(step, step.sequences[i])) {
      add_prefill(step, step.sequences[i], plan);
    } else {
      add_rows(step, step.sequences[i], plan);
    }
  }
  make_tiles(step, plan);
  end_wave(plan);
  plan.waves.pop_back();
}

// Puts the arrays on the device and fills the view.
void CudaAttention::place_plan(const AttentionStep& step, Plan& plan) {
  const PageLayout& layout = *step.layout;
  const int rows = static_cast<int>(plan.rows.size());
  size_t floats = 0;
  const auto queries_of = [&](const DeviceMap& map) {
    return size_t(rows) * step.num_q_heads * (map.stride + 1);
  };
  const bool mapped = std::ranges::any_of(plan.waves, [](const Wave& wave) { return !wave.prefill; });
  for (const DeviceMap& map : plan.maps) floats += mapped ? queries_of(map) : 0;
  float* next = queries_.get<float>(floats);
  for (DeviceMap& map : plan.maps) {
    if (!mapped) break;
    map.queries = next;
    map.biases = next + size_t(rows) * step.num_q_heads * map.stride;
    next += queries_of(map);
  }
  DeviceImage& image = plan.image;
  const size_t sequences = image.add(plan.sequences), segments = image.add(plan.segments);
  for (size_t i = 0; i < plan.sequences.size(); ++i)
    image.point(sequences + i * sizeof(DeviceSequence) + offsetof(DeviceSequence, slabs),
                plan.sequence_slabs[i]);
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const size_t at = segments + i * sizeof(DeviceSegment);
    image.point(at + offsetof(DeviceSegment, slabs), plan.segment_arrays[i][0]);
    if (plan.segments[i].own) image.point(at + offsetof(DeviceSegment, levels), plan.segment_arrays[i][1]);
  }
  const size_t device_rows = image.add(plan.rows), pieces = image.add(plan.pieces),
               maps = image.add(plan.maps), items = image.add(plan.items), pages = image.add(plan.pages),
               tiles = image.add(plan.tiles);
  const std::byte* base = upload(image);
  plan.view = {.layout = layouts_.of(layout).device(),
               .bank = step.bank,
               .head_dim = layout.head_dim,
               .num_q_heads = step.num_q_heads,
               .group = step.num_q_heads / layout.num_kv_heads,
               .num_rows = rows,
               .scale = step.scale,
               .soft_cap = step.soft_cap,
               .q = step.q.as<float>(),
               .k = step.k.as<float>(),
               .v = step.v.as<float>(),
               .out = step.out.as<float>(),
               .sequences = reinterpret_cast<const DeviceSequence*>(base + sequences),
               .segments = reinterpret_cast<const DeviceSegment*>(base + segments),
               .rows = reinterpret_cast<const DeviceRow*>(base + device_rows),
               .maps = reinterpret_cast<const DeviceMap*>(base + maps),
               .pieces = reinterpret_cast<const int*>(base + pieces)};
  plan.device_items = reinterpret_cast<const DeviceItem*>(base + items);
  plan.device_pages = reinterpret_cast<const DevicePage*>(base + pages);
  plan.device_tiles = reinterpret_cast<const PrefillTile*>(base + tiles);
}

void CudaAttention::write_pages(const AttentionStep& step, const Plan& plan) {
  const PageLayout& layout = *step.layout;
  const int count = static_cast<int>(plan.pages.size()), stride = layouts_.of(layout).max_dim();
  if (count == 0) return;
  const size_t floats = size_t(2) * layout.vectors_per_side() * layout.page_tokens * stride;
  const int part = std::max<int>(1, static_cast<int>(kMaxFeatureBytes / (floats * sizeof(float))));
  const FeatureBlock features{features_.get<float>(std::min(part, count) * floats), stride};
  for (int first = 0; first < count; first += part) {
    const int pages = std::min(part, count - first);
    const PageList list{plan.device_pages + first, pages};
    launch_map_step_rows(stream_, plan.view, shape_of(layout), list, features);
    launch_quantize_step(stream_, plan.view, shape_of(layout), list, features);
  }
  launch_write_sinks(stream_, plan.view, shape_of(layout), {plan.device_pages, count});
}

// Buffers of the fast kernels' queries.
void CudaAttention::place_queries(const Plan& plan, std::vector<FastStep>& fast) {
  if (std::ranges::all_of(plan.waves, &Wave::prefill)) return;
  const int heads = plan.view.num_q_heads / plan.view.group;
  const size_t count = plan.rows.size() * heads * kFastQueries;
  constexpr size_t kBytes = sizeof(FastQuery) + sizeof(float);
  std::byte* next = rounded_queries_.get<std::byte>(fast.size() * count * kBytes);
  for (size_t map = 0; map < fast.size(); ++map, next += count * kBytes) {
    if (fast[map].kind == FastKind::kNone) continue;
    fast[map].queries = reinterpret_cast<FastQuery*>(next);
    fast[map].factors = reinterpret_cast<float*>(next + count * sizeof(FastQuery));
  }
}

void CudaAttention::attend(const AttentionStep& step) {
  Plan plan;
  make_plan(step, plan);
  place_plan(step, plan);
  write_pages(step, plan);
  place_queries(plan, plan.fast);
  const bool observed =
      std::any_of(step.sequences.begin(), step.sequences.end(),
                  [](const SequenceSlice& sequence) { return sequence.observer != nullptr; });
  float* softmax = observed ? softmax_.get<float>(size_t(2) * plan.rows.size() * step.num_q_heads) : nullptr;
  const int stride = plan.extents.max_dim + 2;
  int most_states = 0;
  for (const Wave& wave : plan.waves) most_states = std::max(most_states, wave.num_states);
  const Partials partials{partials_.get<float>(size_t(most_states) * plan.view.group * stride), stride};
  for (const Wave& wave : plan.waves) {
    if (wave.prefill) continue;
    StepView view = plan.view;
    view.first_row = wave.first_row;
    view.num_rows = wave.num_rows;
    for (size_t map = 0; map < plan.maps.size(); ++map) {
      launch_map_queries(stream_, view, plan.maps[map]);
      if (plan.fast[map].kind != FastKind::kNone)
        launch_round_queries(stream_, view, plan.maps[map], plan.fast[map], step.layout->num_kv_heads);
    }
    for (const Batch& batch : wave.batches) {
      const ItemList items{plan.device_items + batch.first_item, batch.num_items};
      const FastStep& fast = plan.fast[batch.map];
      if (fast.kind == FastKind::kNone) {
        launch_attend_pages(stream_, view, items, plan.extents, partials);
      } else {
        launch_decode_attention(stream_, view, fast, items, limits_, partials);
      }
    }
    launch_finish_rows(stream_, view, plan.extents, partials, softmax);
  }
  if (!plan.tiles.empty()) {
    launch_prefill_attention(stream_, plan.view, plan.prefill_shape, plan.device_tiles,
                             static_cast<int>(plan.tiles.size()), step.layout->num_kv_heads);
  }
  if (observed) observe(step, plan, softmax);
  if (step.last_reader) launch_write_tails(stream_, plan.view);
}

void CudaAttention::observe(const AttentionStep& step, const Plan& plan, const float* softmax) {
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceSlice& sequence = step.sequences[i];
    if (sequence.observer == nullptr) continue;
    const TokenObserver& wanted = *sequence.observer;
    launch_observe(stream_, plan.view,
                   {static_cast<int>(i), wanted.capacity, wanted.column_sums, wanted.window_sums,
                    wanted.window_first, wanted.key_norms},
                   sequence.first_slot + sequence.num_rows, step.layout->num_kv_heads, softmax);
  }
}

}  // namespace lowkey::kernels::cuda
