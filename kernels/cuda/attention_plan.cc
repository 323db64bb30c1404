#include "kernels/cuda/attention_plan.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/attention_split.h"
#include "kernels/ops/attention_window.h"
#include "kernels/ops/exact_pages.h"

namespace lowkey::kernels::cuda {
namespace {

// Bound of scratch memory: partial results are made in parts where a step has more.
constexpr size_t kMaxPartialBytes = size_t{256} << 20;

}  // namespace

// Segments and pages of one sequence.
void AttentionPlanner::add_sequence(const SequenceSlice& sequence) {
  const PageLayout& layout = *step_.layout;
  const int tokens = layout.page_tokens, end = sequence.first_slot + sequence.num_rows;
  DeviceSequence device{.tail = sequence.tail,
                        .first_row = sequence.first_row,
                        .num_rows = sequence.num_rows,
                        .first_slot = sequence.first_slot,
                        .first_segment = static_cast<int>(plan_.segments.size())};
  const auto add_slabs = [&](std::byte* const* slabs, int pages) {
    return plan_.image.add(std::span<std::byte* const>(slabs, static_cast<size_t>(pages) * kMaxSlabs));
  };
  const auto map_of = [&](const PageLayout& page_layout, int bank, bool own) {
    const DeviceLayout* map_layout = layouts_.of(page_layout).device();
    const int stride = layouts_.of(page_layout).max_dim();
    for (size_t i = 0; i < plan_.maps.size(); ++i) {
      const DeviceMap& map = plan_.maps[i];
      if (map.layout == map_layout && map.own == own && (own || map.bank == bank)) return static_cast<int>(i);
    }
    plan_.maps.push_back({.layout = map_layout,
                          .plans = layouts_.known(page_layout).fast(bank).plans,
                          .stride = stride,
                          .bank = own ? 0 : bank,
                          .own = own});
    plan_.fast.push_back(fast_step(page_layout, bank));
    return static_cast<int>(plan_.maps.size()) - 1;
  };
  const ArchivedPages* archive = sequence.archives == nullptr ? nullptr : &sequence.archives[step_.bank];
  if (archive != nullptr && archive->num_pages > 0) {
    const LayoutTables& tables = layouts_.of(*archive->layout);
    const bool sink =
        archive->layout->sink_tokens > 0 && archive->slabs[archive->layout->sink_slab()] != nullptr;
    plan_.segment_arrays.push_back({add_slabs(archive->slabs, archive->num_pages), 0});
    plan_.segments.push_back({.layout = tables.device(),
                              .bank = archive->bank,
                              .map = map_of(*archive->layout, archive->bank, false),
                              .num_pages = archive->num_pages,
                              .sink_tokens = sink ? archive->layout->sink_tokens : 0});
    plan_.extents.max_dim = std::max(plan_.extents.max_dim, tables.max_dim());
    plan_.extents.exact_tokens = std::max(plan_.extents.exact_tokens, plan_.segments.back().sink_tokens);
  }
  const int pages = end / tokens, seen = (end - 1) / tokens;
  const size_t slabs = add_slabs(sequence.slabs, pages);
  plan_.sequence_slabs.push_back(slabs);
  if (seen > 0) {
    const LayoutTables& tables = layouts_.of(layout);
    const size_t levels = plan_.image.add(std::span<const uint8_t>(sequence.page_levels, seen));
    plan_.segment_arrays.push_back({slabs, levels});
    plan_.segments.push_back({.layout = tables.device(),
                              .map = map_of(layout, step_.bank, true),
                              .sink_tokens = layout.sink_tokens,
                              .own = true});
  }
  device.num_segments = static_cast<int>(plan_.segments.size()) - device.first_segment;
  plan_.sequences.push_back(device);
  if (!step_.first_reader) return;
  for (int page = sequence.first_slot / tokens; page < pages; ++page)
    plan_.pages.push_back({static_cast<int>(plan_.sequences.size()) - 1, page});
}

// The fast kernel of a layout's bank, if there is one; without its queries.
FastStep AttentionPlanner::fast_step(const PageLayout& layout, int bank) const {
  // Observers want every row's softmax to the last digit.
  const bool observed = std::ranges::any_of(
      step_.sequences, [](const SequenceSlice& slice) { return slice.observer != nullptr; });
  if (observed) return {};
  return layouts_.known(layout).fast_step(layout, bank, step_.num_q_heads, limits_);
}

// Rows and items of the sequence added last.
void AttentionPlanner::add_rows(const SequenceSlice& sequence) {
  const int heads = step_.layout->num_kv_heads;
  const DeviceSequence& device = plan_.sequences.back();
  struct Piece {
    int segment, first, count;
  };
  std::vector<Piece> pieces;
  const uint8_t* levels = sequence.page_levels;
  // Rows of one page see the same pages: as many as the fast kernel has room for are one item.
  const int together = step_.window == 0 ? std::max(1, kFastQueries / (step_.num_q_heads / heads)) : 1;
  const int split = split_tokens(sequence.first_slot + sequence.num_rows);
  for (int i = 0; i < sequence.num_rows; ++i) {
    const int slot = sequence.first_slot + i;
    DeviceRow row{.sequence = static_cast<int>(plan_.sequences.size()) - 1,
                  .slot = slot,
                  .first_seen = first_seen(step_, slot)};
    pieces.clear();
    for (int s = device.first_segment; s < device.first_segment + device.num_segments; ++s) {
      const bool own = plan_.segments[s].own;
      const PageLayout& layout = own ? *step_.layout : *sequence.archives[step_.bank].layout;
      const int end = own ? slot / layout.page_tokens : sequence.archives[step_.bank].num_pages;
      const int begin = own ? row.first_seen / layout.page_tokens : 0;
      for_each_piece(begin, end, split, layout.page_tokens, own ? levels : nullptr,
                     [&](int first, int count) {
                       pieces.push_back({s, first, count});
                     });
    }
    row.num_states = static_cast<int>(pieces.size());
    plan_.extents.max_states = std::max(plan_.extents.max_states, row.num_states);
    row.first_piece = static_cast<int>(plan_.pieces.size());
    const int row_states = row.num_states * heads;
    const int since = std::min(i, slot % step_.layout->page_tokens);  // rows of its page before it
    const int to_come =
        std::min(sequence.num_rows - i, step_.layout->page_tokens - slot % step_.layout->page_tokens);
    const bool first = since % together == 0;
    const size_t floats = size_t(plan_.waves.back().num_states + row_states) * (step_.num_q_heads / heads) *
                          (plan_.extents.max_dim + 2);
    if (first && plan_.waves.back().num_rows > 0 && floats * sizeof(float) > kMaxPartialBytes) end_wave();
    AttentionWave& wave = plan_.waves.back();
    row.first_state = wave.num_states;
    for (const Piece& piece : pieces) plan_.pieces.push_back(piece.segment);
    wave.num_states += row_states;
    DeviceItem item{.row = sequence.first_row + i, .state = row.first_state, .row_states = row_states};
    for (item.head = 0; item.head < heads; ++item.head) {
      for (const Piece& piece : pieces) {
        const int map = plan_.segments[piece.segment].map;
        const bool fast = plan_.fast[map].kind != FastKind::kNone;
        item.segment = piece.segment;
        item.first_page = piece.first;
        item.num_pages = piece.count;
        item.num_rows = fast ? std::min(together, to_come) : 1;
        if (first || !fast) plan_.pending[map].push_back(item);
        ++item.state;
      }
    }
    ++wave.num_rows;
    plan_.rows.push_back(row);
  }
}

// Whether the prefill kernel takes the sequence's rows: it depends on the sequence's own rows and pages.
bool AttentionPlanner::takes_prefill(const SequenceSlice& sequence) const {
  const PageLayout& layout = *step_.layout;
  const auto fast = [&](const PageLayout& pages, int bank) {
    return layouts_.known(pages).fast(bank).kind != FastKind::kNone;
  };
  const ArchivedPages* archive = sequence.archives == nullptr ? nullptr : &sequence.archives[step_.bank];
  return sequence.num_rows >= kPrefillRows && sequence.observer == nullptr &&
         step_.num_q_heads / layout.num_kv_heads <= kPrefillGroups && layout.head_dim % kGroupFeatures == 0 &&
         layout.head_dim <= kMaxFastGroups * kGroupFeatures && fast(layout, step_.bank) &&
         (archive == nullptr || archive->num_pages == 0 || fast(*archive->layout, archive->bank));
}

// One shape for all sequences of the step that the prefill kernel takes.
PrefillShape AttentionPlanner::prefill_shape() const {
  PrefillShape shape{.max_groups = step_.layout->head_dim / kGroupFeatures, .narrow = true};
  int64_t rows = 0;
  for (const SequenceSlice& sequence : step_.sequences) {
    if (!takes_prefill(sequence)) continue;
    rows += int64_t{sequence.num_rows} * step_.num_q_heads;
    const auto add = [&](const PageLayout& layout, int bank) {
      const FastBank& fast = layouts_.known(layout).fast(bank);
      shape.max_groups = std::max(shape.max_groups, fast.max_groups);
      shape.narrow = shape.narrow && fast.narrow_keys;
      shape.stage_bytes = std::max(shape.stage_bytes, fast.stage_bytes);
    };
    add(*step_.layout, step_.bank);
    if (sequence.archives != nullptr && sequence.archives[step_.bank].num_pages > 0)
      add(*sequence.archives[step_.bank].layout, sequence.archives[step_.bank].bank);
  }
  if (rows > 0) choose_warps(shape, rows, limits_);
  return shape;
}

void AttentionPlanner::add_prefill(const SequenceSlice& sequence) {
  if (plan_.waves.back().num_rows > 0) end_wave();
  plan_.waves.back().prefill = true;
  plan_.waves.back().num_rows = sequence.num_rows;
  plan_.prefill.push_back(static_cast<int>(plan_.sequences.size()) - 1);
  for (int i = 0; i < sequence.num_rows; ++i) {
    const int slot = sequence.first_slot + i;
    plan_.rows.push_back(
        {.sequence = plan_.prefill.back(), .slot = slot, .first_seen = first_seen(step_, slot)});
  }
  end_wave();
}

// What has most to read first, so that little is left to wait for at the end.
void AttentionPlanner::make_tiles() {
  const int group = step_.num_q_heads / step_.layout->num_kv_heads;
  const int tokens = kPrefillWarpRows * plan_.prefill_shape.warps / group;
  for (const int index : plan_.prefill) {
    const DeviceSequence& sequence = plan_.sequences[index];
    for (int row = step_.sequences[index].unwanted_rows; row < sequence.num_rows; row += tokens)
      plan_.tiles.push_back({index, sequence.first_row + row, std::min(tokens, sequence.num_rows - row)});
  }
  std::ranges::stable_sort(plan_.tiles, [&](const PrefillTile& a, const PrefillTile& b) {
    return plan_.rows[a.first_row].slot > plan_.rows[b.first_row].slot;
  });
}

// The wave's items become launches, and the next one begins.
void AttentionPlanner::end_wave() {
  AttentionWave& wave = plan_.waves.back();
  for (size_t map = 0; map < plan_.maps.size(); ++map) {
    std::vector<DeviceItem>& items = plan_.pending[map];
    if (items.empty()) continue;
    wave.batches.push_back(
        {static_cast<int>(map), static_cast<int>(plan_.items.size()), static_cast<int>(items.size())});
    plan_.items.insert(plan_.items.end(), items.begin(), items.end());
    items.clear();
  }
  plan_.waves.push_back({.first_row = wave.first_row + wave.num_rows});
}

AttentionPlan AttentionPlanner::make() {
  const PageLayout& layout = *step_.layout;
  LOWKEY_CHECK(step_.num_q_heads % layout.num_kv_heads == 0 &&
                   step_.k.cols == layout.num_kv_heads * layout.head_dim &&
                   step_.q.cols == step_.num_q_heads * layout.head_dim,
               "{} query heads, {} KV heads of {}; q {}, k {} columns", step_.num_q_heads,
               layout.num_kv_heads, layout.head_dim, step_.q.cols, step_.k.cols);
  check_window(step_);
  plan_.extents = {layouts_.of(layout).max_dim(), 0};
  for (const SequenceSlice& sequence : step_.sequences) {
    LOWKEY_CHECK(sequence.observer == nullptr || is_exact(layout, layout.vector(step_.bank, Side::kKey, 0)),
                 "slots of encoded pages are not observed: recipe {}, bank {}", layout.recipe, step_.bank);
    LOWKEY_CHECK(sequence.first_row == (plan_.sequences.empty() ? 0
                                                                : plan_.sequences.back().first_row +
                                                                      plan_.sequences.back().num_rows),
                 "rows of sequences are not consecutive: {}", sequence.first_row);
    add_sequence(sequence);
  }
  plan_.extents.exact_tokens += layout.sink_tokens + layout.page_tokens;
  plan_.waves.push_back({});
  plan_.pending.resize(plan_.maps.size());
  plan_.prefill_shape = prefill_shape();
  const std::vector<DeviceSequence> sequences = std::move(plan_.sequences);
  plan_.sequences.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    plan_.sequences.push_back(sequences[i]);
    if (plan_.prefill_shape.warps > 0 && takes_prefill(step_.sequences[i])) {
      add_prefill(step_.sequences[i]);
    } else {
      add_rows(step_.sequences[i]);
    }
  }
  make_tiles();
  end_wave();
  plan_.waves.pop_back();
  return std::move(plan_);
}

}  // namespace lowkey::kernels::cuda
