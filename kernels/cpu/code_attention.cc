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
HWY_INLINE void add_some(const CodeSide& side, const uint32_t* staged, const AddRows& add, float* acc,
                         size_t stride) {
  if constexpr (kStaged) {
    add_staged_rows<kRows>(side, staged, add, acc, stride);
  } else {
    add_rows<kRows>(side, add, acc, stride);
  }
}

// Rows [first, rows) see all pages.
template <bool kStaged>
void add_values(const CodeSide& side, const uint32_t* staged, AddRows add, int first, int rows, float* acc,
                size_t stride) {
  const AddRows base = add;
  PageCodes again[kMaxBatchPages];  // without reading ahead once more
  for (int i = 0; i < add.num_pages; ++i) {
    again[i] = add.pages[i];
    again[i].next = again[i].slabs;
  }
  for (int row = first; row < rows; row += kMaxFused) {
    if (row > first) add.pages = again;
    add.weights = base.weights + row * base.weight_stride;
    add.factors = base.factors + row * base.factor_stride;
    float* out = acc + row * stride;
    switch (std::min(kMaxFused, rows - row)) {
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
    const auto codes = [&](const CodeSide& side, int p) {
      std::byte* const* slabs = run.slabs + static_cast<size_t>(p) * kMaxSlabs;
      const bool more = p + batch_pages < run.num_pages + run.pages_after;
      return PageCodes{&side, slabs, more ? slabs + static_cast<size_t>(batch_pages) * kMaxSlabs : slabs,
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
    for (int p = begin, last; p < end; p = last) {  // those that the same rows see together
      const int first = run.first_query[p], behind = run.end_query(p, tokens, rows);
      const bool fused = behind - first <= kFusedRows;
      PageCodes values[kMaxBatchPages];
      for (last = p; last < end && (last == p || fused); ++last) {
        if (run.first_query[last] != first || run.end_query(last, tokens, rows) != behind) break;
        values[last - p] = codes(plan.value, last);
        values[last - p].prefetch_norms();
      }
      const AddRows add{values,    last - p, weights, static_cast<size_t>(row_words.size),
                        row_words, p - page, factors, static_cast<size_t>(2 * batch_pages)};
      if (!fused) {
        stage_values(values[0], staged);
        add_values<true>(plan.value, staged, add, first, behind, state.acc, state.stride);
      } else {
        add_values<false>(plan.value, staged, add, first, behind, state.acc, state.stride);
      }
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
