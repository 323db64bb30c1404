#include "kernels/ops/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/ops/attention_window.h"
#include "kernels/page/dtype.h"
#include "kernels/page/page_codec.h"

namespace lowkey::kernels {
namespace {

// Shorthands of one (step, sequence).
struct Geometry {
  explicit Geometry(const AttentionStep& step, const SequenceSlice& sequence)
      : page_tokens(step.layout->page_tokens),
        dim(step.layout->head_dim),
        heads(step.layout->num_kv_heads),
        first_page(sequence.first_slot / page_tokens),
        end_position(sequence.first_slot + sequence.num_rows),
        num_own_pages((end_position + page_tokens - 1) / page_tokens - first_page),
        page_row_bytes(static_cast<size_t>(page_tokens) * dim * dtype_bytes(step.layout->dtype)) {}

  std::byte* own_page(std::vector<std::byte>& own_rows, Side side, int head, int page) const {
    const size_t vector = static_cast<size_t>(side == Side::kValue) * heads + head;
    return own_rows.data() + (vector * num_own_pages + (page - first_page)) * page_row_bytes;
  }

  int page_tokens, dim, heads, first_page, end_position, num_own_pages;
  size_t page_row_bytes;
};

// Complete pages of the stored vector that begins at `head`.
void encode_pages(const AttentionStep& step, const SequenceSlice& sequence, const Geometry& g, Side side,
                  int head, std::vector<std::byte>& own_rows) {
  if (!step.first_reader) return;
  for (int page = g.first_page; page < g.end_position / g.page_tokens; ++page) {
    std::vector<const std::byte*> rows;
    for (int i = 0; i < step.layout->join; ++i) rows.push_back(g.own_page(own_rows, side, head + i, page));
    encode_vector(*step.layout, step.layout->vector(step.bank, side, head), rows,
                  {sequence.slabs + static_cast<size_t>(page) * kMaxSlabs});
  }
}

// One KV head of one sequence: tail + step rows -> own rows, sink, tail.
void write_rows(const AttentionStep& step, const SequenceSlice& sequence, const Geometry& g, Side side,
                int head, std::vector<std::byte>& own_rows) {
  const PageLayout& layout = *step.layout;
  const RowsLayout& where = layout.rows_of(step.bank, side, head);
  const float* source = (side == Side::kKey ? step.k : step.v).as<float>();
  const size_t row_bytes = g.page_row_bytes / g.page_tokens;
  const int before = sequence.first_slot % g.page_tokens;  // rows of the first page that the tail has
  std::memcpy(g.own_page(own_rows, side, head, g.first_page), sequence.tail + where.tail_offset,
              before * row_bytes);
  for (int row = 0; row < sequence.num_rows; ++row) {
    const int position = sequence.first_slot + row;
    std::byte* target = g.own_page(own_rows, side, head, position / g.page_tokens);
    const float* x = source + (static_cast<size_t>(sequence.first_row + row) * g.heads + head) * g.dim;
    for (int f = 0; f < g.dim; ++f) {
      store_element(target, layout.dtype, static_cast<size_t>(position % g.page_tokens) * g.dim + f, x[f]);
    }
  }
  for (int page = g.first_page; page < g.end_position / g.page_tokens; ++page) {
    std::byte* const* slabs = sequence.slabs + static_cast<size_t>(page) * kMaxSlabs;
    if (page == 0 && layout.sink_tokens > 0)
      write_sink(layout, where, g.own_page(own_rows, side, head, page), slabs[layout.sink_slab()]);
  }
  const int left = g.end_position % g.page_tokens;
  if (left > 0 && step.last_reader) {
    std::memcpy(sequence.tail + where.tail_offset,
                g.own_page(own_rows, side, head, g.end_position / g.page_tokens), left * row_bytes);
  }
}

// Exact rows of one head, [tokens][dim] of the dtype, appended.
void append_exact(const PageLayout& layout, const std::byte* rows, int tokens, std::vector<double>& out) {
  for (int i = 0; i < tokens * layout.head_dim; ++i) out.push_back(load_element(rows, layout.dtype, i));
}

// Complete pages as one head reads them, appended: mean + decode^T features, its columns; sink rows in place
// of the codes where page 0 has a sink slab. Null `page_levels`: all. The first `unseen` pages are not read:
// zeros.
void append_pages(const PageLayout& layout, const VectorLayout& vector, int head, std::byte* const* slabs,
                  int num_pages, const uint8_t* page_levels, int unseen, std::vector<double>& out) {
  const float* decode = layout.numbers_at(vector.decode);
  const float* mean = layout.numbers_at(vector.mean);
  std::vector<float> features(static_cast<size_t>(layout.page_tokens) * vector.dim);
  for (int page = 0; page < num_pages; ++page, slabs += kMaxSlabs) {
    if (page < unseen) {
      out.resize(out.size() + static_cast<size_t>(layout.page_tokens) * layout.head_dim);
      continue;
    }
    const int levels = page_levels == nullptr ? layout.num_levels : page_levels[page];
    decode_features(layout, vector, {slabs}, levels, features.data());
    int token = 0;
    if (page == 0 && layout.sink_tokens > 0 && slabs[layout.sink_slab()] != nullptr) {
      const RowsLayout& where = layout.rows_of(vector.bank, vector.side, head);
      append_exact(layout, slabs[layout.sink_slab()] + where.sink_offset, layout.sink_tokens, out);
      token = layout.sink_tokens;
    }
    for (; token < layout.page_tokens; ++token) {
      const float* y = features.data() + static_cast<size_t>(token) * vector.dim;
      const int first = (head - vector.head) * layout.head_dim;
      for (int i = first; i < first + layout.head_dim; ++i) {
        double x = mean == nullptr ? 0.0 : mean[i];
        if (decode == nullptr && vector.dim > 0) x += y[i];
        for (int j = 0; decode != nullptr && j < vector.dim; ++j)
          x += double{decode[static_cast<size_t>(j) * vector.input_dim + i]} * y[j];
        out.push_back(x);
      }
    }
  }
}

// What the rows of one sequence see of one side of one head.
struct Seen {
  std::vector<double> archived, encoded, own;  // [tokens][dim]; of all complete pages; from the first page on

  // Row i of what a row sees whose own page is `page`.
  const double* row(size_t i, int page, const Geometry& g) const {
    const size_t dim = g.dim, a = archived.size() / dim, e = static_cast<size_t>(page) * g.page_tokens;
    if (i < a) return archived.data() + i * dim;
    if (i < a + e) return encoded.data() + (i - a) * dim;
    return own.data() + (i - a - static_cast<size_t>(g.first_page) * g.page_tokens) * dim;
  }
};

Seen see(const AttentionStep& step, const SequenceSlice& sequence, const Geometry& g, Side side, int head,
         std::vector<std::byte>& own_rows) {
  const PageLayout& layout = *step.layout;
  Seen seen;
  if (sequence.archives != nullptr && sequence.archives[step.bank].num_pages > 0) {
    const ArchivedPages& archive = sequence.archives[step.bank];
    append_pages(*archive.layout, archive.layout->vector(archive.bank, side, head), head, archive.slabs,
                 archive.num_pages, nullptr, 0, seen.archived);
  }
  append_pages(layout, layout.vector(step.bank, side, head), head, sequence.slabs,
               (g.end_position - 1) / g.page_tokens, sequence.page_levels,
               first_seen(step, sequence.first_slot) / g.page_tokens, seen.encoded);
  append_exact(layout, g.own_page(own_rows, side, head, g.first_page), g.num_own_pages * g.page_tokens,
               seen.own);
  return seen;
}

// weights = softmax(scale q K^T), out = weights V, over rows [begin, end) of what a row of `page` sees.
void attend_row(const AttentionStep& step, const float* q, const Seen& keys, const Seen& values, int page,
                const Geometry& g, size_t begin, size_t end, std::vector<double>& weights, float* out) {
  weights.assign(end, 0.0);
  double largest = -INFINITY, sum = 0;
  for (size_t i = begin; i < end; ++i) {
    double dot = 0;
    for (int f = 0; f < g.dim; ++f) dot += q[f] * keys.row(i, page, g)[f];
    weights[i] = dot * step.scale;
    if (step.soft_cap != 0) weights[i] = step.soft_cap * std::tanh(weights[i] / step.soft_cap);
    largest = std::max(largest, weights[i]);
  }
  for (size_t i = begin; i < end; ++i) sum += weights[i] = std::exp(weights[i] - largest);
  std::vector<double> result(g.dim);
  for (size_t i = begin; i < end; ++i) {
    weights[i] /= sum;
    for (int f = 0; f < g.dim; ++f) result[f] += weights[i] * values.row(i, page, g)[f];
  }
  for (int f = 0; f < g.dim; ++f) out[f] = static_cast<float>(result[f]);
}

// One row's weights on the sequence's own slots 0 .. slot, summed over its query heads.
void observe_row(const TokenObserver& observer, size_t head, int slot, const std::vector<double>& weights) {
  for (int i = 0; i <= slot; ++i) {
    const size_t at = head * observer.capacity + i;
    const auto weight = static_cast<float>(weights[i]);
    if (observer.column_sums != nullptr) observer.column_sums[at] += weight;
    if (observer.window_sums != nullptr && slot >= observer.window_first) observer.window_sums[at] += weight;
  }
}

void observe_key(const TokenObserver& observer, size_t head, int slot, const double* key, int dim) {
  if (observer.key_norms == nullptr) return;
  double sum = 0;
  for (int f = 0; f < dim; ++f) sum += key[f] * key[f];
  observer.key_norms[head * observer.capacity + slot] = static_cast<float>(std::sqrt(sum));
}

void attend_head(const AttentionStep& step, const SequenceSlice& sequence, const Geometry& g, int head,
                 std::vector<std::byte>& own_rows) {
  const int group = step.num_q_heads / g.heads;
  const Seen keys = see(step, sequence, g, Side::kKey, head, own_rows);
  const Seen values = see(step, sequence, g, Side::kValue, head, own_rows);
  const size_t archived = keys.archived.size() / g.dim;
  const size_t observed = static_cast<size_t>(step.bank) * g.heads + head;
  std::vector<double> weights, sums;
  for (int slot = sequence.first_slot + sequence.unwanted_rows; slot < g.end_position; ++slot) {
    const size_t row = static_cast<size_t>(sequence.first_row) + slot - sequence.first_slot;
    const int page = slot / g.page_tokens;
    sums.assign(slot + 1, 0.0);
    for (int i = 0; i < group; ++i) {
      const size_t offset = (row * step.num_q_heads + head * group + i) * g.dim;
      attend_row(step, step.q.as<float>() + offset, keys, values, page, g, first_seen(step, slot),
                 archived + slot + 1, weights, step.out.as<float>() + offset);
      for (int t = 0; t <= slot; ++t) sums[t] += weights[archived + t];
    }
    if (sequence.observer == nullptr) continue;
    observe_row(*sequence.observer, observed, slot, sums);
    observe_key(*sequence.observer, observed, slot, keys.row(archived + slot, page, g), g.dim);
  }
}

// The write half for one sequence. `own_rows` receives the exact rows of every page it touches:
// [side][head][page - first page][page_tokens][dim] of the dtype; missing rows are zero.
void write_sequence(const AttentionStep& step, const SequenceSlice& sequence,
                    std::vector<std::byte>& own_rows) {
  const Geometry g(step, sequence);
  own_rows.assign(g.page_row_bytes * g.num_own_pages * g.heads * 2, std::byte{0});
  for (Side side : {Side::kKey, Side::kValue}) {
    for (int head = 0; head < g.heads; ++head) write_rows(step, sequence, g, side, head, own_rows);
    for (int head = 0; head < g.heads; head += step.layout->join)
      encode_pages(step, sequence, g, side, head, own_rows);
  }
}

}  // namespace

void attend_reference(const AttentionStep& step) {
  check_window(step);
  std::vector<std::byte> own_rows;
  for (const SequenceSlice& sequence : step.sequences) {
    const Geometry g(step, sequence);
    write_sequence(step, sequence, own_rows);
    for (int head = 0; head < g.heads; ++head) attend_head(step, sequence, g, head, own_rows);
  }
}

}  // namespace lowkey::kernels
