// Scores of a batch of encoded pages to weights that integer products take: online softmax, times the norms
// of values, rounded. Included once per target (Highway's foreach_target).
#if defined(LOWKEY_CODE_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWKEY_CODE_WEIGHTS_INL_H_
#undef LOWKEY_CODE_WEIGHTS_INL_H_
#else
#define LOWKEY_CODE_WEIGHTS_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "kernels/cpu/code_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

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

constexpr int kMaxBatchPages = kBatchTokens / 16;

// Scores become weights times norms; the largest of each page.
HWY_INLINE void weigh(const Batch& batch, const BatchRow& row, float (&largest)[kMaxBatchPages]) {
  const DF d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  // Nothing seen at all: weights e^(-infinity - lowest) = 0.
  const VF shift = hn::Set(d, std::max(*row.maximum, std::numeric_limits<float>::lowest()));
  VF sums = hn::Zero(d), maxima[kMaxBatchPages];
  for (int page = row.first_page; page < row.pages; ++page) {
    const auto* norms = reinterpret_cast<const uint16_t*>(batch.slabs[static_cast<size_t>(page) * kMaxSlabs] +
                                                          batch.values.norms_offset);
    float* weights = row.scores + static_cast<size_t>(page) * batch.tokens;
    VF most = hn::Zero(d);
    for (int t = 0; t < batch.tokens; t += lanes) {
      VF weight = rough_exp_f32(d, hn::Sub(hn::LoadU(d, weights + t), shift));
      sums = hn::Add(sums, weight);
      if (batch.values.has_norm) weight = hn::Mul(weight, load_norms(norms, t));
      hn::StoreU(weight, d, weights + t);
      most = hn::Max(most, weight);
    }
    maxima[page] = most;
  }
  const int begin = row.first_page / 4 * 4;
  for (int page = begin; page < row.first_page; ++page) maxima[page] = hn::Zero(d);
  for (int page = row.pages; page % 4 != 0; ++page) maxima[page] = hn::Zero(d);
  for (int page = begin; page < row.pages; page += 4) max_of_each(maxima + page, largest + page);
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
  float largest[kMaxFused][kMaxBatchPages];
  for (int r = 0; r < count && batch.soft_cap != 0; ++r) cap_scores(batch, rows[r]);
  for (int r = 0; r < count; ++r) raise_maximum(batch, rows[r], dim);
  for (int r = 0; r < count; ++r) weigh(batch, rows[r], largest[r]);
  const float limit = wide_weight_limit(batch.tokens);
  for (int r = 0; r < count; ++r) {
    for (int page = rows[r].first_page; page < rows[r].pages; ++page)
      round_weights(batch, rows[r], page, largest[r][page], limit);
  }
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LOWKEY_CODE_WEIGHTS_INL_H_
