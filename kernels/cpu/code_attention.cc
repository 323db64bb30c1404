#include "kernels/cpu/code_attention.h"

#include <algorithm>

#include "kernels/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/code_attention.cc"
#define HWY_WANT_AVX3_DL 1
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/code_weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

// Pages that rows [first, behind) see.
struct SeenPages {
  PageCodes pages[kMaxBatchPages];
  int count = 0;
  int first = 0, behind = 0;

  // The same, without reading ahead once more.
  SeenPages again() const {
    SeenPages copy = *this;
    for (int i = 0; i < count; ++i) copy.pages[i].next = pages[i].slabs;
    return copy;
  }
};

template <bool kStaged>
void score_pages(const SeenPages& seen, const uint32_t* staged, const CodeQueries& queries, float* scores,
                 size_t stride) {
  const SeenPages again = seen.again();
  for (int row = seen.first; row < seen.behind; row += kMaxFused) {
    const PageCodes* pages = (row == seen.first ? seen : again).pages;
    float* out = scores + row * stride;
    switch (std::min(kMaxFused, seen.behind - row)) {
      case 1:
        score_rows<1, kStaged>(pages, seen.count, staged, queries, row, out, stride);
        break;
      case 2:
        score_rows<2, kStaged>(pages, seen.count, staged, queries, row, out, stride);
        break;
      case 3:
        score_rows<3, kStaged>(pages, seen.count, staged, queries, row, out, stride);
        break;
      default:
        score_rows<4, kStaged>(pages, seen.count, staged, queries, row, out, stride);
    }
  }
}

template <int kRows, bool kStaged>
HWY_INLINE void add_some(const CodeSide& side, const uint32_t* staged, const AddRows& add, float* acc,
                         size_t stride) {
  if constexpr (kStaged) {
    add_staged_rows<kRows>(side, staged, add, acc, stride);
  } else {
    add_rows<kRows>(side, add, acc, stride);
  }
}

template <bool kStaged>
void add_values(const CodeSide& side, const SeenPages& seen, const uint32_t* staged, const AddRows& base,
                float* acc, size_t stride) {
  const SeenPages again = seen.again();
  AddRows add = base;
  for (int row = seen.first; row < seen.behind; row += kMaxFused) {
    add.pages = (row == seen.first ? seen : again).pages;
    add.weights = base.weights + row * base.weight_stride;
    add.factors = base.factors + row * base.factor_stride;
    float* out = acc + row * stride;
    switch (std::min(kMaxFused, seen.behind - row)) {
      case 1:
        add_some<1, kStaged>(side, staged, add, out, stride);
        break;
      case 2:
        add_some<2, kStaged>(side, staged, add, out, stride);
        break;
      case 3:
        add_some<3, kStaged>(side, staged, add, out, stride);
        break;
      default:
        add_some<4, kStaged>(side, staged, add, out, stride);
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
          aligned_begin(scratch.scores) + r * batch_tokens,
          state.maximum + r,
          state.sum + r,
          state.acc + r * state.stride,
          aligned_begin(scratch.weights) + r * batch.row.size,
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
  const int batch_pages = kernels::batch_pages(tokens), batch_tokens = batch_pages * tokens;
  const WeightRow row_words(batch_tokens);
  unsigned orders = 0;
  for (const CodeGroup& group : plan.value.groups) orders |= 1u << static_cast<int>(group.form);
  float* scores = aligned_begin(scratch.scores);
  uint32_t *weights = aligned_begin(scratch.weights), *staged = aligned_begin(scratch.staged);
  float* factors = scratch.factors.data();
  for (int page = 0, end; page < run.num_pages; page = end) {
    end = std::min(run.num_pages, page + batch_pages);
    if (end <= run.skipped) continue;
    const int begin = std::max(page, run.skipped);
    // Those from page p on that the same rows see; one, where rows are many.
    const auto seen_from = [&](const CodeSide& side, int p) {
      SeenPages seen{.first = run.first_query[p], .behind = run.end_query(p, tokens, rows)};
      const int most = seen.behind - seen.first > kFusedRows ? 1 : end - p;
      for (; seen.count < most; ++seen.count, ++p) {
        if (run.first_query[p] != seen.first || run.end_query(p, tokens, rows) != seen.behind) break;
        std::byte* const* slabs = run.slabs + static_cast<size_t>(p) * kMaxSlabs;
        const bool more = p + batch_pages < run.num_pages + run.pages_after;
        seen.pages[seen.count] = {
            &side, slabs, more ? slabs + static_cast<size_t>(batch_pages) * kMaxSlabs : slabs, tokens};
        seen.pages[seen.count].prefetch_norms();
      }
      return seen;
    };
    for (int p = begin; p < end;) {
      const SeenPages keys = seen_from(plan.key, p);
      float* out = scores + (p - page) * tokens;
      if (keys.behind - keys.first > kFusedRows) {
        stage_keys(keys.pages[0], staged);
        score_pages<true>(keys, staged, queries, out, batch_tokens);
      } else {
        score_pages<false>(keys, staged, queries, out, batch_tokens);
      }
      p += keys.count;
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
    for (int p = begin; p < end;) {
      const SeenPages values = seen_from(plan.value, p);
      const AddRows add{.num_pages = values.count,
                        .weights = weights,
                        .weight_stride = static_cast<size_t>(row_words.size),
                        .orders = row_words,
                        .first_page = p - page,
                        .factors = factors,
                        .factor_stride = static_cast<size_t>(2 * batch_pages)};
      if (values.behind - values.first > kFusedRows) {
        stage_values(values.pages[0], staged);
        add_values<true>(plan.value, values, staged, add, state.acc, state.stride);
      } else {
        add_values<false>(plan.value, values, staged, add, state.acc, state.stride);
      }
      p += values.count;
    }
  }
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(see_codes);

void see_codes(const CodePlan& plan, const PageRun& run, const CodeQueries& queries,
               const AttentionState& state, CodeScratch& scratch) {
  const size_t pages = kernels::batch_pages(plan.page_tokens), tokens = pages * plan.page_tokens;
  grow_aligned(scratch.scores, queries.rows * tokens);
  grow_aligned(scratch.weights, queries.rows * static_cast<size_t>(WeightRow(static_cast<int>(tokens)).size));
  grow(scratch.factors, queries.rows * 2 * pages);
  // 16 features of 16 bits a token at most, whole groups.
  const size_t groups = (std::max(plan.key.dim, plan.value.dim) + kGroupFeatures - 1) / kGroupFeatures;
  grow_aligned(scratch.staged, groups * plan.page_tokens * kGroupFeatures / 2);
  HWY_DYNAMIC_DISPATCH(see_codes)(plan, run, queries, state, scratch);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
