#include "kernels/cpu/code_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/scratch.h"
#include "kernels/page/embedded_quantizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/code_attention.cc"
#define HWY_WANT_AVX3_DL 1
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/code_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

// 16 values times a scale, rounded to nearest (even).
struct Rounded16 {
  HWY_INLINE Rounded16(const float* x, VF scale) {
    for (size_t i = 0; i < 16; i += hn::Lanes(DF()))
      values[i / hn::Lanes(DF())] = hn::NearestInt(hn::Mul(hn::LoadU(DF(), x + i), scale));
  }
  VI values[16 / hn::MaxLanes(DF())];
};

// What a batch's softmax needs to know.
struct Batch {
  const CodeSide& values;
  std::byte* const* slabs;  // of its first page
  int tokens;               // of a page
  float soft_cap;
  bool nibbles, crumbs, bytes, pairs;  // orders of weights that values ask for
  WeightRow row;
};

// One row over the pages of a batch that it sees: from `first_page` to before `pages`.
struct BatchRow {
  float* scores;  // become weights
  float* maximum;
  float* sum;
  float* acc;
  uint32_t* rounded;
  float* factors;
  float offset;    // added before the soft cap
  int hidden;      // the batch's first tokens that it does not see
  int first_page;  // those before are not there
  int pages;
};

// Scores of the pages that the row sees.
HWY_INLINE void cap_scores(const Batch& batch, const BatchRow& row) {
  const DF d;
  const VF offset = hn::Set(d, row.offset);
  for (int t = row.first_page * batch.tokens; t < row.pages * batch.tokens;
       t += static_cast<int>(hn::Lanes(d)))
    hn::StoreU(soft_cap_f32(d, hn::Add(hn::LoadU(d, row.scores + t), offset), batch.soft_cap), d,
               row.scores + t);
}

// Largest rounded weight of wide values: as many as a page has, times the largest value, stay below 2^31.
HWY_INLINE float wide_weight_limit(int tokens) {
  constexpr int kBudget = std::numeric_limits<int32_t>::max() / kMaxWideValue;
  return static_cast<float>(std::min(std::numeric_limits<int16_t>::max() + 0, kBudget / tokens - 1));
}

HWY_INLINE float exp_one(float x) {
  const hn::CappedTag<float, 1> d1;
  return hn::GetLane(exp_f32(d1, hn::Set(d1, x)));
}

// The row's new maximum; what it has summed up is brought there.
HWY_INLINE void raise_maximum(const Batch& batch, const BatchRow& row, int dim) {
  const DF d;
  const int lanes = static_cast<int>(hn::Lanes(d)), n = row.pages * batch.tokens;
  for (int t = 0; t < std::min(row.hidden, n); ++t) row.scores[t] = -std::numeric_limits<float>::infinity();
  VF maxima = hn::LoadU(d, row.scores);
  for (int i = lanes; i < n; i += lanes) maxima = hn::Max(maxima, hn::LoadU(d, row.scores + i));
  const float maximum = hn::GetLane(hn::MaxOfLanes(d, maxima));
  if (!(maximum > *row.maximum)) return;
  const float shrink = exp_one(*row.maximum - maximum);
  *row.maximum = maximum;
  if (*row.sum == 0.0f) return;  // nothing yet
  *row.sum *= shrink;
  for (int f = 0; f < dim; f += lanes)
    store_first(hn::Mul(load_first(d, row.acc + f, dim - f), hn::Set(d, shrink)), d, row.acc + f, dim - f);
}

// Scores become weights times norms; the largest of each page.
HWY_INLINE void weigh(const Batch& batch, const BatchRow& row, float* largest) {
  const DF d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  // Nothing seen at all: weights e^(-infinity - lowest) = 0.
  const VF shift = hn::Set(d, std::max(*row.maximum, std::numeric_limits<float>::lowest()));
  VF sums = hn::Zero(d);
  for (int page = row.first_page; page < row.pages; ++page) {
    const auto* norms = reinterpret_cast<const uint16_t*>(batch.slabs[static_cast<size_t>(page) * kMaxSlabs] +
                                                          batch.values.norms_offset);
    float* weights = row.scores + static_cast<size_t>(page) * batch.tokens;
    VF most = hn::Zero(d);
    for (int t = 0; t < batch.tokens; t += lanes) {
      VF weight = exp_f32(d, hn::Sub(hn::LoadU(d, weights + t), shift));
      sums = hn::Add(sums, weight);
      if (batch.values.has_norm) weight = hn::Mul(weight, load_norms(norms, t));
      hn::StoreU(weight, d, weights + t);
      most = hn::Max(most, weight);
    }
    largest[page] = hn::GetLane(hn::MaxOfLanes(d, most));
  }
  *row.sum += hn::GetLane(hn::SumOfLanes(d, sums));
}

// Weights of one page, rounded relative to the largest of them, in all orders asked for.
HWY_INLINE void round_weights(const Batch& batch, const BatchRow& row, int page, float largest, float limit) {
  const float safe = largest > 1e-30f ? largest : 0.0f, inverse = safe > 0.0f ? 1.0f / safe : 0.0f;
  row.factors[2 * page] = safe * (1 / (255 * kNarrowUnit));
  row.factors[2 * page + 1] = safe * (1 / kWideUnit) / limit;
  const VF narrow_scale = hn::Set(DF(), 255 * inverse), wide_scale = hn::Set(DF(), limit * inverse);
  for (int t = page * batch.tokens; t < (page + 1) * batch.tokens; t += 16) {
    uint32_t* words = row.rounded + t / 4;
    if (batch.nibbles || batch.crumbs) {
      const Rounded16 rounded(row.scores + t, narrow_scale);
      if (batch.nibbles)
        store_bytes<uint8_t>(rounded.values, kCodeTables.nibble_order, words + batch.row.nibbles);
      if (batch.crumbs)
        store_bytes<uint8_t>(rounded.values, kCodeTables.crumb_order, words + batch.row.crumbs);
    }
    if (batch.bytes || batch.pairs) {
      const Rounded16 rounded(row.scores + t, wide_scale);
      if (batch.bytes) store_words(rounded.values, kCodeTables.byte_order, words + t / 4 + batch.row.bytes);
      if (batch.pairs)
        store_words(rounded.values, kCodeTables.nibble_pair_order, words + t / 4 + batch.row.pairs);
    }
  }
}

// Online softmax of some rows over a batch (Milakov & Gimelshein 2018), then rounded weights. Step by step
// for all rows: each step's latency hides behind the other rows.
void weigh_rows(const Batch& batch, const BatchRow* rows, int count, int dim) {
  constexpr int kMaxPages = kCodeBatchTokens / 16;
  float largest[kMaxFused][kMaxPages];
  for (int r = 0; r < count && batch.soft_cap != 0; ++r) cap_scores(batch, rows[r]);
  for (int r = 0; r < count; ++r) raise_maximum(batch, rows[r], dim);
  for (int r = 0; r < count; ++r) weigh(batch, rows[r], largest[r]);
  const float limit = wide_weight_limit(batch.tokens);
  for (int r = 0; r < count; ++r) {
    for (int page = rows[r].first_page; page < rows[r].pages; ++page)
      round_weights(batch, rows[r], page, largest[r][page], limit);
  }
}

template <bool kStaged>
void score_page(const PageCodes& page, const uint32_t* staged, const CodeQueries& queries, int first,
                int rows, float* scores, size_t stride) {
  const PageCodes again{page.side, page.slabs, page.slabs, page.tokens};
  for (int row = first; row < rows; row += kMaxFused) {
    const PageCodes& which = row == first ? page : again;
    float* out = scores + row * stride;
    switch (std::min(kMaxFused, rows - row)) {
      case 1:
        score_rows<1, kStaged>(which, staged, queries, row, out, stride);
        break;
      case 2:
        score_rows<2, kStaged>(which, staged, queries, row, out, stride);
        break;
      case 3:
        score_rows<3, kStaged>(which, staged, queries, row, out, stride);
        break;
      default:
        score_rows<4, kStaged>(which, staged, queries, row, out, stride);
    }
  }
}

template <int kRows, bool kStaged>
HWY_INLINE void add_some(const PageCodes& page, const uint32_t* staged, const AddRows& add, float* acc,
                         size_t stride) {
  if constexpr (kStaged) {
    add_staged_rows<kRows>(page, staged, add, acc, stride);
  } else {
    add_rows<kRows>(page, add, acc, stride);
  }
}

template <bool kStaged>
void add_page(const PageCodes& page, const uint32_t* staged, AddRows add, int first, int rows, float* acc,
              size_t stride) {
  const PageCodes again{page.side, page.slabs, page.slabs, page.tokens};
  const AddRows base = add;
  for (int row = first; row < rows; row += kMaxFused) {
    const PageCodes& which = row == first ? page : again;
    add.weights = base.weights + row * base.weight_stride;
    add.factors = base.factors + row * base.factor_stride;
    float* out = acc + row * stride;
    switch (std::min(kMaxFused, rows - row)) {
      case 1:
        add_some<1, kStaged>(which, staged, add, out, stride);
        break;
      case 2:
        add_some<2, kStaged>(which, staged, add, out, stride);
        break;
      case 3:
        add_some<3, kStaged>(which, staged, add, out, stride);
        break;
      default:
        add_some<4, kStaged>(which, staged, add, out, stride);
    }
  }
}

// The scores of pages [page, end) of a run become rounded weights.
void weigh_batch(const Batch& batch, const PageRun& run, int page, int end, const CodeQueries& queries,
                 int batch_pages, const AttentionState& state, int dim, CodeScratch& scratch) {
  const int batch_tokens = batch_pages * batch.tokens;
  const int end_row = run.end_query(end - 1, batch.tokens, queries.rows);
  BatchRow some[kMaxFused];
  int count = 0;
  for (int row = run.first_query[page]; row < end_row; ++row) {
    int first = std::max(page, run.skipped);
    while (first < end && run.end_query(first, batch.tokens, queries.rows) <= row) ++first;
    int behind = first;
    while (behind < end && run.first_query[behind] <= row) ++behind;
    const size_t r = row;
    if (behind > first) {
      some[count++] = {
          scratch.scores.data() + r * batch_tokens,
          state.maximum + r,
          state.sum + r,
          state.acc + r * state.stride,
          scratch.weights.data() + r * batch.row.size,
          scratch.factors.data() + r * 2 * batch_pages,
          queries.offsets == nullptr ? 0.0f : queries.offsets[r],
          std::max(page == 0 ? run.masked_tokens : 0, run.hidden_tokens(page, row, batch.tokens)),
          first - page,
          behind - page};
    }
    if (count == kMaxFused || (count > 0 && row + 1 == end_row)) {
      weigh_rows(batch, some, count, dim);
      count = 0;
    }
  }
}

void see_codes(const CodePlan& plan, const PageRun& run, const CodeQueries& queries,
               const AttentionState& state, CodeScratch& scratch) {
  const int tokens = plan.page_tokens, rows = queries.rows;
  const int batch_pages = code_batch_pages(tokens), batch_tokens = batch_pages * tokens;
  const WeightRow row_words(batch_tokens);
  unsigned orders = 0;
  for (const CodeGroup& group : plan.value.groups) orders |= 1u << static_cast<int>(group.form);
  float* scores = scratch.scores.data();
  uint32_t *weights = scratch.weights.data(), *staged = scratch.staged.data();
  float* factors = scratch.factors.data();
  for (int page = 0, end; page < run.num_pages; page = end) {
    end = std::min(run.num_pages, page + batch_pages);
    if (end <= run.skipped) continue;
    const int begin = std::max(page, run.skipped);
    const auto codes = [&](const CodeSide& side, int p) {
      std::byte* const* slabs = run.slabs + static_cast<size_t>(p) * kMaxSlabs;
      const bool more = p + batch_pages < run.num_pages + run.pages_after;
      return PageCodes{side, slabs, more ? slabs + static_cast<size_t>(batch_pages) * kMaxSlabs : slabs,
                       tokens};
    };
    for (int p = begin; p < end; ++p) {
      const PageCodes keys = codes(plan.key, p);
      const int first = run.first_query[p], behind = run.end_query(p, tokens, rows);
      float* out = scores + (p - page) * tokens;
      keys.prefetch_norms();
      if (behind - first > kFusedRows) {
        stage_keys(keys, staged);
        score_page<true>(keys, staged, queries, first, behind, out, batch_tokens);
      } else {
        score_page<false>(keys, staged, queries, first, behind, out, batch_tokens);
      }
    }
    const auto has = [&](CodeForm form) { return (orders >> static_cast<int>(form) & 1) != 0; };
    const Batch batch{plan.value,
                      run.slabs + static_cast<size_t>(page) * kMaxSlabs,
                      tokens,
                      queries.soft_cap,
                      has(CodeForm::kNibbles),
                      has(CodeForm::kCrumbs) || has(CodeForm::kCrumbPair),
                      has(CodeForm::kBytes),
                      orders >> static_cast<int>(CodeForm::kNibblePair) != 0,
                      row_words};
    weigh_batch(batch, run, page, end, queries, batch_pages, state, plan.value.dim, scratch);
    for (int p = begin; p < end; ++p) {
      const PageCodes values = codes(plan.value, p);
      const int first = run.first_query[p], behind = run.end_query(p, tokens, rows);
      const AddRows add{weights, static_cast<size_t>(row_words.size), row_words, p - page,
                        factors, static_cast<size_t>(2 * batch_pages)};
      values.prefetch_norms();
      if (behind - first > kFusedRows) {
        stage_values(values, staged);
        add_page<true>(values, staged, add, first, behind, state.acc, state.stride);
      } else {
        add_page<false>(values, staged, add, first, behind, state.acc, state.stride);
      }
    }
  }
}

// One row: see CodeQueries. Rounded wide features add up to no more than keeps their sums below 2^31.
void round_query(const CodeSide& side, const float* features, uint32_t* words, int32_t& bias, float& narrow,
                 float& wide) {
  constexpr float kWideBudget = std::numeric_limits<int32_t>::max() / kMaxWideValue - 1024;
  const DF d;
  VF narrow_most = hn::Zero(d), wide_most = narrow_most;
  HWY_ALIGN float wide_sums[kGroupFeatures] = {};  // the order of sums is the same for all vector lengths
  for (const CodeGroup& group : side.groups) {
    for (int f = 0; f < group.features; f += static_cast<int>(hn::Lanes(d))) {
      const VF magnitude = hn::Abs(load_first(d, features + group.feature + f, group.features - f));
      if (is_wide(group.form)) {
        wide_most = hn::Max(wide_most, magnitude);
        float* sum = wide_sums + f % kGroupFeatures;
        hn::Store(hn::Add(hn::Load(d, sum), magnitude), d, sum);
      } else {
        narrow_most = hn::Max(narrow_most, magnitude);
      }
    }
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, narrow_most));
  const float largest_wide = hn::GetLane(hn::MaxOfLanes(d, wide_most));
  float sum_wide = 0;
  for (const float sum : wide_sums) sum_wide += sum;
  const float step = largest / 127, wide_step = std::max(largest_wide / 32767, sum_wide / kWideBudget);
  const float inverse = step > 1e-30f ? 1 / step : 0, wide_inverse = wide_step > 1e-30f ? 1 / wide_step : 0;
  narrow = step / kNarrowUnit;
  wide = wide_step / kWideUnit;
  const CodeTables& tables = kCodeTables;
  VI sums = hn::Zero(DI());
  for (const CodeGroup& group : side.groups) {
    uint32_t* out = words + group.query_word;
    for (int f = 0; f < group.features; f += kGroupFeatures) {
      HWY_ALIGN float rest[kGroupFeatures] = {};
      const float* x = features + group.feature + f;
      if (group.features - f < kGroupFeatures) {
        std::copy_n(x, group.features - f, rest);
        x = rest;
      }
      if (is_wide(group.form)) {
        const bool bytes = group.form == CodeForm::kBytes;
        const Rounded16 rounded(x, hn::Set(DF(), wide_inverse));
        store_words(rounded.values, bytes ? tables.byte_order : tables.nibble_pair_order, out);
        out += 8;
      } else {
        const bool nibbles = group.form == CodeForm::kNibbles;
        const Rounded16 rounded(x, hn::Set(DF(), inverse));
        for (const VI& values : rounded.values) sums = hn::Add(sums, values);
        store_bytes<int8_t>(rounded.values, nibbles ? tables.nibble_order : tables.crumb_order, out);
        out += 4;
      }
    }
  }
  bias = -128 * hn::GetLane(hn::SumOfLanes(DI(), sums));
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(see_codes);
HWY_EXPORT(round_query);

namespace {

CodeTables make_code_tables() {
  const EmbeddedTables& values = embedded_tables();
  CodeTables tables;
  const auto narrow = [](float value) { return static_cast<int>(std::lrint(value * kNarrowUnit)); };
  for (int i = 0; i < 64; ++i) {
    const int nibble = narrow(values.value4[i & 15]);
    tables.key_nibbles[i] = static_cast<uint8_t>(nibble + 128);
    tables.value_nibbles[i] = static_cast<uint8_t>(nibble);
    for (int part = 0; part < 3; ++part) {
      const int crumb = narrow(values.value2[(i >> 2 * part) & 3]);
      tables.key_crumbs[64 * part + i] = static_cast<uint8_t>(crumb + 128);
      tables.value_crumbs[64 * part + i] = static_cast<uint8_t>(crumb);
    }
  }
  for (int i = 0; i < 32; ++i) {
    // The rounded step errs least in the middle of the cell: 7.5 steps from its ends.
    const float step = values.step[i & 15], middle = values.base[i & 15] + 7.5f * step;
    tables.step[i] = static_cast<int16_t>(std::lrint(step * kWideUnit));
    tables.base[i] = static_cast<int16_t>(std::lrint(middle * kWideUnit - 7.5f * tables.step[i]));
  }
  const auto bytes = [](CodeForm form, uint8_t* order) {
    std::copy_n(element_order(form).data(), 16, order);
  };
  const auto words = [](CodeForm form, uint8_t* order) {
    for (int i = 0; i < 16; ++i) order[i] = static_cast<uint8_t>(2 * element_order(form)[i / 2] + i % 2);
  };
  bytes(CodeForm::kNibbles, tables.nibble_order);
  bytes(CodeForm::kCrumbs, tables.crumb_order);
  words(CodeForm::kBytes, tables.byte_order);
  words(CodeForm::kNibblePair, tables.nibble_pair_order);
  return tables;
}

}  // namespace

const CodeTables kCodeTables = make_code_tables();

void round_queries(const CodePlan& plan, const FeatureQueries& queries, CodeQueries& rounded) {
  const size_t rows = queries.count;
  rounded.rows = queries.count;
  rounded.soft_cap = queries.soft_cap;
  rounded.offsets = queries.offsets;
  rounded.stride = plan.key.query_words;
  grow(rounded.words, rows * rounded.stride);
  grow(rounded.bias, rows);
  grow(rounded.narrow, rows);
  grow(rounded.wide, rows);
  for (size_t row = 0; row < rows; ++row) {
    HWY_DYNAMIC_DISPATCH(round_query)
    (plan.key, queries.rows + row * queries.stride, rounded.words.data() + row * rounded.stride,
     rounded.bias[row], rounded.narrow[row], rounded.wide[row]);
  }
}

void see_codes(const CodePlan& plan, const PageRun& run, const CodeQueries& queries,
               const AttentionState& state, CodeScratch& scratch) {
  const size_t pages = code_batch_pages(plan.page_tokens), tokens = pages * plan.page_tokens;
  grow(scratch.scores, queries.rows * tokens);
  grow(scratch.weights, queries.rows * static_cast<size_t>(WeightRow(static_cast<int>(tokens)).size));
  grow(scratch.factors, queries.rows * 2 * pages);
  // 16 features of 16 bits a token at most, whole groups.
  const size_t groups = (std::max(plan.key.dim, plan.value.dim) + kGroupFeatures - 1) / kGroupFeatures;
  grow(scratch.staged, groups * plan.page_tokens * kGroupFeatures / 2);
  HWY_DYNAMIC_DISPATCH(see_codes)(plan, run, queries, state, scratch);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
