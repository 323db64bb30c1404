#include "kernels/cuda/step_tables.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "kernels/cuda/attention_split.h"
#include "kernels/ops/attention_window.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kFewestPieces = 64;   // room that short sequences do not outgrow at once
constexpr size_t kMostWindows = 8;  // a model has one or two
constexpr size_t kAlignment = 16;

template <class T>
T must(Result<T> result) {
  LOWKEY_CHECK(result.ok(), "{}", result.error().message);
  return std::move(result).value();
}

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Bytes of one sequence in the table of slabs: addresses, then levels.
size_t slab_bytes(int pages) {
  return aligned(size_t(pages) * kMaxSlabs * sizeof(std::byte*)) + aligned(pages);
}

int pages_of(const SequenceSlice& sequence, int page_tokens) {  // completed by this step, too
  return (sequence.first_slot + 1) / page_tokens;
}

}  // namespace

std::optional<StepSize> size_of(const StepGraphs::Step& step) {
  const int tokens = step.layout->page_tokens;
  StepSize size{.rows = static_cast<int>(step.sequences.size())};
  if (size.rows == 0 || size.rows > kMaxStepRows) return std::nullopt;
  for (int row = 0; row < size.rows; ++row) {
    const SequenceSlice& sequence = step.sequences[row];
    if (sequence.num_rows != 1 || sequence.first_row != row || sequence.archives != nullptr ||
        sequence.observer != nullptr)
      return std::nullopt;
    int pieces = 0;
    for_each_piece(0, sequence.first_slot / tokens, split_tokens(sequence.first_slot + 1), tokens,
                   sequence.page_levels, [&](int, int) { ++pieces; });
    size.pieces += pieces;
    size.most_pieces = std::max(size.most_pieces, pieces);
    size.pages += pages_of(sequence, tokens) > sequence.first_slot / tokens;
  }
  if (size.most_pieces > kMaxStepStates) return std::nullopt;
  return size;
}

void StepTables::allocate(Mirrored& memory, size_t bytes) const {
  memory = {};  // the old ones first
  memory.host = must(PinnedBuffer::create(bytes));
  memory.device = must(pool_->allocate(bytes));
}

void StepTables::copy(Mirrored& memory, size_t first, size_t bytes) const {
  if (bytes == 0) return;
  LOWKEY_CUDA_CHECK(cudaMemcpyAsync(memory.device.data() + first, memory.host.data() + first, bytes,
                                    cudaMemcpyHostToDevice, stream_));
  copied_.record(stream_);
}

size_t StepTables::items_at() const {
  return aligned(pieces_at() + size_t(piece_capacity_) * sizeof(int32_t));
}

size_t StepTables::window_bytes() const {
  return items_at() + size_t(piece_capacity_) * heads_ * sizeof(DeviceItem);
}

void StepTables::reserve(const StepGraphs::Step& step, const StepSize& size) {
  const Status copied = copied_.synchronize();
  LOWKEY_CHECK(copied.ok(), "{}", copied.error().message);
  if (table_.device.size() == 0) allocate(table_, sizeof(Table));
  size_t bytes = 0;
  for (const SequenceSlice& sequence : step.sequences)
    bytes += slab_bytes(pages_of(sequence, step.layout->page_tokens));
  if (slabs_.device.size() < bytes) allocate(slabs_, std::bit_ceil(std::max<size_t>(bytes, 64 << 10)));
  const int heads = step.layout->num_kv_heads;
  if (size.pieces <= piece_capacity_ && heads <= heads_) return;
  heads_ = std::max(heads_, heads);
  const int pieces = std::max({size.pieces, piece_capacity_, kFewestPieces});
  piece_capacity_ = static_cast<int>(std::bit_ceil(static_cast<unsigned>(pieces)));
  for (Window& window : windows_) allocate(window.memory, window_bytes());
}

void StepTables::add_sequence(int row, Table& table) {
  const SequenceSlice& sequence = step_.sequences[row];
  const PageLayout& layout = *step_.layout;
  const int pages = pages_of(sequence, layout.page_tokens), seen = sequence.first_slot / layout.page_tokens;
  const size_t slabs = next_slab_byte_,
               levels = slabs + aligned(size_t(pages) * kMaxSlabs * sizeof(std::byte*));
  next_slab_byte_ += slab_bytes(pages);
  if (pages > 0) {
    std::memcpy(slabs_.host.data() + slabs, sequence.slabs, size_t(pages) * kMaxSlabs * sizeof(std::byte*));
    std::memcpy(slabs_.host.data() + levels, sequence.page_levels, pages);
  }
  auto* const device_slabs = reinterpret_cast<std::byte* const*>(slabs_.device.data() + slabs);
  table.sequences[row] = {.tail = sequence.tail,
                          .slabs = device_slabs,
                          .first_row = row,
                          .num_rows = 1,
                          .first_slot = sequence.first_slot,
                          .first_segment = row,
                          .num_segments = seen > 0 ? 1 : 0};
  table.segments[row] = {.layout = layouts_.of(layout).device(),
                         .slabs = device_slabs,
                         .levels = reinterpret_cast<const uint8_t*>(slabs_.device.data() + levels),
                         .sink_tokens = layout.sink_tokens,
                         .own = true};
  if (pages > seen) table.pages[table.num_pages++] = {row, seen};
}

void StepTables::begin(const StepGraphs::Step& step, const StepSize& size, const DeviceMap& map) {
  const Status copied = copied_.synchronize();
  LOWKEY_CHECK(copied.ok(), "{}", copied.error().message);
  step_ = step;
  rows_ = size.rows;
  next_slab_byte_ = 0;
  Table& table = *reinterpret_cast<Table*>(table_.host.data());
  std::ranges::copy(step.tokens, table.tokens);
  std::ranges::copy(step.positions, table.positions);
  std::ranges::copy(step.logit_rows, table.logit_rows);
  table.num_pages = 0;
  table.map = map;
  for (int row = 0; row < rows_; ++row) add_sequence(row, table);
  copy(table_, 0, sizeof(Table));
  copy(slabs_, 0, next_slab_byte_);
  for (Window& window : windows_) window.filled = false;
}

void StepTables::add_row(int row, int window, WindowHeader& header, int32_t* pieces, DeviceItem* items) {
  const SequenceSlice& sequence = step_.sequences[row];
  const int slot = sequence.first_slot, tokens = step_.layout->page_tokens,
            heads = step_.layout->num_kv_heads;
  DeviceRow& device = header.rows[row];
  device = {.sequence = row,
            .slot = slot,
            .first_state = next_piece_ * heads,
            .first_piece = next_piece_,
            .first_seen = first_seen({.window = window}, slot)};
  DeviceItem* const own = items + device.first_state;
  for_each_piece(device.first_seen / tokens, slot / tokens, split_tokens(slot + 1), tokens,
                 sequence.page_levels, [&](int first, int count) {
                   own[device.num_states++] = {
                       .row = row, .segment = row, .first_page = first, .num_pages = count};
                   pieces[next_piece_++] = row;
                 });
  const int states = device.num_states;
  for (int head = 0; head < heads; ++head) {
    for (int i = 0; i < states; ++i) {
      DeviceItem& item = own[head * states + i];
      item = own[i];
      item.head = head;
      item.state = device.first_state + head * states + i;
      item.row_states = states * heads;
    }
  }
}

void StepTables::fill(int window) {
  auto found = std::ranges::find_if(windows_, [&](const Window& known) { return known.window == window; });
  if (found == windows_.end()) {
    LOWKEY_CHECK(windows_.size() < kMostWindows, "layers of more than {} windows", kMostWindows);
    windows_.push_back({.window = window});
    found = windows_.end() - 1;
    allocate(found->memory, window_bytes());
  }
  if (found->filled) return;
  std::byte* host = found->memory.host.data();
  auto& header = *reinterpret_cast<WindowHeader*>(host);
  next_piece_ = 0;
  for (int row = 0; row < rows_; ++row)
    add_row(row, window, header, reinterpret_cast<int32_t*>(host + pieces_at()),
            reinterpret_cast<DeviceItem*>(host + items_at()));
  header.num_items = next_piece_ * step_.layout->num_kv_heads;
  copy(found->memory, 0, pieces_at() + size_t(next_piece_) * sizeof(int32_t));
  copy(found->memory, items_at(), size_t(header.num_items) * sizeof(DeviceItem));
  found->filled = true;
}

const StepTables::Window& StepTables::window_of(int window) const {
  const auto found =
      std::ranges::find_if(windows_, [&](const Window& known) { return known.window == window; });
  LOWKEY_CHECK(found != windows_.end() && found->filled, "window {} of a step is not there", window);
  return *found;
}

PageList StepTables::pages() const {
  constexpr int kBlocks = 8;  // a step rarely completes more; they take turns
  return {&table()->pages[0], std::min(rows_, kBlocks), &table()->num_pages};
}

ItemList StepTables::items(int window) const {
  const std::byte* device = window_of(window).memory.device.as<std::byte>();
  return {reinterpret_cast<const DeviceItem*>(device + items_at()),
          piece_capacity_ * step_.layout->num_kv_heads,
          &reinterpret_cast<const WindowHeader*>(device)->num_items};
}

void StepTables::place(int window, StepView& view) const {
  const std::byte* device = window_of(window).memory.device.as<std::byte>();
  view.num_rows = rows_;
  view.sequences = &table()->sequences[0];
  view.segments = &table()->segments[0];
  view.maps = &table()->map;
  view.rows = &reinterpret_cast<const WindowHeader*>(device)->rows[0];
  view.pieces = reinterpret_cast<const int*>(device + pieces_at());
}

}  // namespace lowkey::kernels::cuda
