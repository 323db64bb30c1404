#include "kernels/ops/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
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

// What a row sees of one stored vector: encoded pages with the sink in place of its codes, then its own page
// exact.
std::vector<float> visible_rows(const AttentionStep& step, const SequenceSlice& sequence, const Geometry& g,
                                Side side, int head, int own_page, std::vector<std::byte>& own_rows) {
  const PageLayout& layout = *step.layout;
  const VectorLayout& vector = layout.vector(step.bank, side, head);
  const size_t page_elements = static_cast<size_t>(g.page_tokens) * g.dim;
  std::vector<float> rows((own_page + 1) * page_elements);
  std::vector<float> decoded(static_cast<size_t>(g.page_tokens) * vector.input_dim);
  for (int page = 0; page < own_page; ++page) {
    std::byte* const* slabs = sequence.slabs + static_cast<size_t>(page) * kMaxSlabs;
    decode_vector(layout, vector, {slabs}, sequence.levels, decoded.data());
    for (int t = 0; t < g.page_tokens; ++t) {
      std::copy_n(decoded.data() + static_cast<size_t>(t) * vector.input_dim + (head - vector.head) * g.dim,
                  g.dim, rows.data() + page * page_elements + t * g.dim);
    }
    if (page == 0 && layout.sink_tokens > 0) {
      const std::byte* sink = slabs[layout.sink_slab()] + layout.rows_of(step.bank, side, head).sink_offset;
      for (int i = 0; i < layout.sink_tokens * g.dim; ++i) rows[i] = load_element(sink, layout.dtype, i);
    }
  }
  const std::byte* own = g.own_page(own_rows, side, head, own_page);
  for (size_t i = 0; i < page_elements; ++i) {
    rows[own_page * page_elements + i] = load_element(own, layout.dtype, i);
  }
  return rows;
}

// out = softmax(scale q K^T) V over the first `count` rows.
void attend_row(const float* q, const float* keys, const float* values, int count, int dim, float scale,
                float* out) {
  std::vector<double> weights(count);
  double largest = -INFINITY;
  for (int t = 0; t < count; ++t) {
    double dot = 0;
    for (int f = 0; f < dim; ++f) dot += static_cast<double>(q[f]) * keys[static_cast<size_t>(t) * dim + f];
    weights[t] = dot * scale;
    largest = std::max(largest, weights[t]);
  }
  double sum = 0;
  for (double& w : weights) sum += w = std::exp(w - largest);
  for (int f = 0; f < dim; ++f) {
    double value = 0;
    for (int t = 0; t < count; ++t) value += weights[t] * values[static_cast<size_t>(t) * dim + f];
    out[f] = static_cast<float>(value / sum);
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
  const int group = step.num_q_heads / step.layout->num_kv_heads;
  std::vector<std::byte> own_rows;
  for (const SequenceSlice& sequence : step.sequences) {
    const Geometry g(step, sequence);
    write_sequence(step, sequence, own_rows);
    for (int head = 0; head < g.heads; ++head) {
      for (int page = g.first_page; page < g.first_page + g.num_own_pages; ++page) {
        const auto keys = visible_rows(step, sequence, g, Side::kKey, head, page, own_rows);
        const auto values = visible_rows(step, sequence, g, Side::kValue, head, page, own_rows);
        const int begin = std::max(sequence.first_slot, page * g.page_tokens);
        const int end = std::min(g.end_position, (page + 1) * g.page_tokens);
        for (int position = begin; position < end; ++position) {
          const size_t row = static_cast<size_t>(sequence.first_row) + position - sequence.first_slot;
          for (int i = 0; i < group; ++i) {
            const size_t offset = (row * step.num_q_heads + head * group + i) * g.dim;
            attend_row(step.q.as<float>() + offset, keys.data(), values.data(), position + 1, g.dim,
                       step.scale, step.out.as<float>() + offset);
          }
        }
      }
    }
  }
}

}  // namespace lowkey::kernels
