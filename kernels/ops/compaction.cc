#include "kernels/ops/compaction.h"

#include <cstring>

#include "base/check.h"
#include "kernels/ops/exact_pages.h"

namespace lowkey::kernels {
namespace {

// One exact row out of the planes of a full, identity-coded page.
void read_row(const PageLayout& layout, const VectorLayout& vector, int head, PageView page, int token,
              std::byte* row) {
  const size_t element = dtype_bytes(layout.dtype);
  const int per_word = static_cast<int>(4 / element);
  const int first = (head - vector.head) * layout.head_dim;  // of the stored vector's features
  for (int f = first; f < first + layout.head_dim; ++f) {
    const Plane& plane = layout.planes[vector.first_plane + f / kGroupFeatures];
    const int feature = f - plane.feature;
    const size_t index =
        vector.side == Side::kKey
            ? (static_cast<size_t>(feature / per_word) * layout.page_tokens + token) * per_word +
                  feature % per_word
            : (static_cast<size_t>(token / per_word) * plane.features + feature) * per_word +
                  token % per_word;
    std::memcpy(row + (f - first) * element, page.slabs[plane.level] + plane.offset + index * element,
                element);
  }
}

void check(const Compaction& c, const VectorLayout& source) {
  LOWKEY_CHECK(is_exact(*c.from, source), "compaction from pages that are not exact: bank {}, head {}",
               source.bank, source.head);
  LOWKEY_CHECK(c.from->head_dim == c.to->head_dim && c.from->num_kv_heads == c.to->num_kv_heads &&
                   c.from->dtype == c.to->dtype && c.num_kept <= c.num_slots &&
                   c.num_kept % c.to->page_tokens < c.from->page_tokens,
               "compaction of {} of {} slots, pages of {} to pages of {} tokens", c.num_kept, c.num_slots,
               c.from->page_tokens, c.to->page_tokens);
}

// Rows [first, first + count) of the head's kept tokens, [count][head_dim] of the dtype.
void gather_rows(const Compaction& c, Side side, int head, int first, int count, std::byte* rows) {
  const PageLayout& from = *c.from;
  const VectorLayout& vector = from.vector(c.bank, side, head);
  const std::byte* tail = c.tail + from.rows_of(c.bank, side, head).tail_offset;
  const size_t row_bytes = from.head_dim * dtype_bytes(from.dtype);
  const int32_t* keep = c.keep + static_cast<size_t>(head) * c.num_kept + first;
  for (int i = 0; i < count; ++i, rows += row_bytes) {
    const int slot = keep[i], page = slot / from.page_tokens, token = slot % from.page_tokens;
    LOWKEY_CHECK(slot >= 0 && slot < c.num_slots, "slot {} of {}", slot, c.num_slots);
    if (page == c.num_slots / from.page_tokens) {
      std::memcpy(rows, tail + token * row_bytes, row_bytes);
    } else {
      read_row(from, vector, head, {c.slabs + static_cast<size_t>(page) * kMaxSlabs}, token, rows);
    }
  }
}

}  // namespace

void compact_vector(const Compaction& c, Side side, int index, const VectorEncoder& encode) {
  const PageLayout& to = *c.to;
  const VectorLayout& target = to.vector(c.to_bank, side, index * to.join);
  const size_t head_bytes = static_cast<size_t>(to.page_tokens) * to.head_dim * dtype_bytes(to.dtype);
  std::vector<std::byte> rows(head_bytes * to.join);
  std::vector<const std::byte*> head_rows;
  for (int i = 0; i < to.join; ++i) {
    check(c, c.from->vector(c.bank, side, target.head + i));
    head_rows.push_back(rows.data() + i * head_bytes);
  }
  const auto gather = [&](int first, int count) {
    for (int i = 0; i < to.join; ++i)
      gather_rows(c, side, target.head + i, first, count, rows.data() + i * head_bytes);
  };
  const int pages = c.num_kept / to.page_tokens;
  for (int page = 0; page < pages; ++page) {
    std::byte* const* slabs = c.to_slabs + static_cast<size_t>(page) * kMaxSlabs;
    gather(page * to.page_tokens, to.page_tokens);
    encode(to, target, head_rows, {slabs});
    for (int i = 0; i < to.join && to.sink_tokens > 0 && slabs[to.sink_slab()] != nullptr; ++i)
      write_sink(to, to.rows_of(c.to_bank, side, target.head + i), head_rows[i], slabs[to.sink_slab()]);
  }
  // Through `rows`: a kept row of the tail may lie where an earlier one goes.
  const int left = c.num_kept % to.page_tokens;
  gather(pages * to.page_tokens, left);
  for (int i = 0; i < to.join; ++i) {
    std::memcpy(c.tail + c.from->rows_of(c.bank, side, target.head + i).tail_offset, head_rows[i],
                left * c.from->head_dim * dtype_bytes(c.from->dtype));
  }
}

}  // namespace lowkey::kernels
