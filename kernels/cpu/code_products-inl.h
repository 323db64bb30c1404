// Integer products of query rows with one page's keys, and of weights with its values. Included once per
// target (Highway's foreach_target).
#if defined(LOWKEY_CODE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWKEY_CODE_PRODUCTS_INL_H_
#undef LOWKEY_CODE_PRODUCTS_INL_H_
#else
#define LOWKEY_CODE_PRODUCTS_INL_H_
#endif

#include "kernels/cpu/code_expand-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

// One page's K or V of one stored vector.
struct PageCodes {
  const CodeSide* side = nullptr;
  std::byte* const* slabs = nullptr;
  std::byte* const* next = nullptr;  // slabs of the page to prefetch; the same as slabs: none
  int tokens = 0;                    // of a page

  HWY_INLINE const uint16_t* norms(std::byte* const* of) const {
    return reinterpret_cast<const uint16_t*>(of[0] + side->norms_offset);
  }
  HWY_INLINE void prefetch_norms() const {
    if (next == slabs || !side->has_norm) return;
    for (int at = 0; at < tokens; at += 32) __builtin_prefetch(norms(next) + at, 0, 3);
  }
};

// A plane of a group. With every word that is read the same one of the next page is prefetched: one burst
// would fill the line buffers and wait.
struct PlaneReader {
  HWY_INLINE PlaneReader(const PageCodes& page, const CodeGroup::Source& plane)
      : words(reinterpret_cast<const uint32_t*>(page.slabs[plane.slab] + plane.offset)),
        ahead(reinterpret_cast<const uint32_t*>(page.next[plane.slab] + plane.offset) - words) {}
  HWY_INLINE VW load(size_t at) const {
    const uint32_t* word = words + at;
    __builtin_prefetch(word + ahead, 0, 3);
    return hn::LoadU(DW(), word);
  }
  HWY_INLINE VW load_first(size_t at, size_t count) const {
    const uint32_t* word = words + at;
    __builtin_prefetch(word + ahead, 0, 3);
    return HWY_NAMESPACE::load_first(DW(), word, count);
  }
  const uint32_t* words;
  ptrdiff_t ahead;
};

// What expand() takes: words of a key's group, of tokens from `token` on.
struct KeyPlanes {
  const PageCodes& page;
  const CodeGroup& group;
  size_t token;

  HWY_INLINE auto operator()(int plane) const {
    const PlaneReader reader(page, group.planes[plane]);
    const size_t tokens = page.tokens, first = token;
    return [=](int word, int b) LOWKEY_INLINE_LAMBDA {
      return reader.load(static_cast<size_t>(word) * tokens + first + b * hn::Lanes(DW()));
    };
  }
};

// The same of a value's group: kBlocks vectors of features, whole groups from group `index` on, or one, of
// `features` in its group, from feature `within` on.
template <int kBlocks>
struct ValuePlanes {
  const PageCodes& page;
  const CodeGroup& group;
  size_t index;
  int features, within;

  HWY_INLINE auto operator()(int plane) const {
    const PlaneReader reader(page, group.planes[plane]);
    const size_t words = group.planes[plane].bytes / 4, first = index * words + within;
    const size_t stride = features, count = features - within;
    return [=](int word, int b) LOWKEY_INLINE_LAMBDA {
      const size_t at = first + static_cast<size_t>(word) * stride;
      if constexpr (kBlocks > 1) return reader.load(at + b * words);
      return reader.load_first(at, count);
    };
  }
};

// bf16 norms of `tokens` [t, t + lanes).
HWY_INLINE VF load_norms(const uint16_t* norms, int t) {
  const hn::Rebind<uint16_t, DF> d16;
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DW(), hn::LoadU(d16, norms + t))));
}

// Scores of kRows rows from `row` on with kBlocks registers of tokens from `t` on.
template <int kRows, int kBlocks, bool kStaged>
HWY_INLINE void score_tokens(const PageCodes& page, const uint32_t* staged, const Tables& tables,
                             const CodeQueries& queries, int row, int t, float* scores, size_t score_stride) {
  const DF d;
  const int lanes = static_cast<int>(hn::Lanes(DW()));
  const bool wide_too = page.side->wide;
  VI narrow[kBlocks][kRows], wide[kBlocks][kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
      narrow[b][r] = hn::Set(DI(), queries.bias[row + r]);
      wide[b][r] = hn::Zero(DI());
    }
  }
  const uint32_t* query = queries.words.data() + static_cast<size_t>(row) * queries.stride;
  const size_t stride = queries.stride;
  for (const CodeGroup& group : page.side->groups) {
    const uint32_t* q = query + group.query_word;
    const auto add_narrow = [&](int quad, int b, VW bytes) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        narrow[b][r] = dot4(narrow[b][r], bytes, hn::Set(DW(), q[r * stride + quad]));
    };
    const auto add_wide = [&](int pair, int b, VW words) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        wide[b][r] = dot2(wide[b][r], words, hn::Set(DW(), q[r * stride + pair]));
    };
    if constexpr (kStaged) {
      const uint32_t* bytes = staged + static_cast<size_t>(group.query_word) * page.tokens + t;
      const int words = (group.features + 15) / 16 * (is_wide(group.form) ? 8 : 4);
      for (int i = 0; i < words; ++i, bytes += page.tokens) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          const VW x = hn::LoadU(DW(), bytes + b * lanes);
          if (!is_wide(group.form)) {
            add_narrow(i, b, x);
          } else {
            add_wide(i, b, x);
          }
        }
      }
    } else {
      const KeyPlanes planes{page, group, static_cast<size_t>(t)};
      expand<kBlocks>(group.form, group.features, tables, planes, add_narrow, add_wide);
    }
  }
  const uint16_t* norms = page.norms(page.slabs);
#pragma GCC unroll 2
  for (int b = 0; b < kBlocks; ++b) {
    const int at = t + b * lanes;
    const VF norm = page.side->has_norm ? load_norms(norms, at) : hn::Set(d, 1.0f);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      VF x = hn::Mul(hn::ConvertTo(d, narrow[b][r]), hn::Set(d, queries.narrow[row + r]));
      if (wide_too) x = hn::MulAdd(hn::ConvertTo(d, wide[b][r]), hn::Set(d, queries.wide[row + r]), x);
      hn::StoreU(hn::Mul(x, norm), d, scores + r * score_stride + at);
    }
  }
}

// Scores of all tokens of some pages; if staged, of one.
template <int kRows, bool kStaged>
void score_rows(const PageCodes* pages, int num_pages, const uint32_t* staged, const CodeQueries& queries,
                int row, float* scores, size_t score_stride) {
  const Tables tables(kCodeTables.key_nibbles, kCodeTables.key_crumbs);
  const int lanes = static_cast<int>(hn::Lanes(DW()));
  for (const PageCodes* page = pages; page < pages + num_pages; scores += page++->tokens) {
    int t = 0;
    for (; t + 2 * lanes <= page->tokens; t += 2 * lanes)
      score_tokens<kRows, 2, kStaged>(*page, staged, tables, queries, row, t, scores, score_stride);
    for (; t < page->tokens; t += lanes)
      score_tokens<kRows, 1, kStaged>(*page, staged, tables, queries, row, t, scores, score_stride);
  }
}

// The page's keys as [word of a query][token].
void stage_keys(const PageCodes& page, uint32_t* staged) {
  const Tables tables(kCodeTables.key_nibbles, kCodeTables.key_crumbs);
  for (const CodeGroup& group : page.side->groups) {
    uint32_t* out = staged + static_cast<size_t>(group.query_word) * page.tokens;
    for (int t = 0; t < page.tokens; t += static_cast<int>(hn::Lanes(DW()))) {
      const KeyPlanes planes{page, group, static_cast<size_t>(t)};
      const auto store = [&](int i, int, VW x) LOWKEY_INLINE_LAMBDA {
        hn::StoreU(x, DW(), out + static_cast<size_t>(i) * page.tokens + t);
      };
      expand<1>(group.form, group.features, tables, planes, store, store);
    }
  }
}

// Calls part(f, features of its group, words before its group, count) for every vector of features of a
// value's group.
template <class Part>
HWY_INLINE void for_feature_parts(const CodeGroup& group, int first, const Part& part) {
  for (int f = first; f < group.features; f += static_cast<int>(hn::Lanes(DW()))) {
    const int begin = f / kGroupFeatures * kGroupFeatures;
    part(f, std::min(kGroupFeatures, group.features - begin), f - begin,
         static_cast<size_t>(begin / kGroupFeatures));
  }
}

// The page's values as [part of a vector of features][quad or pair of tokens][lanes].
void stage_values(const PageCodes& page, uint32_t* staged) {
  const Tables tables(kCodeTables.value_nibbles, kCodeTables.value_crumbs);
  const size_t lanes = hn::Lanes(DW());
  for (const CodeGroup& group : page.side->groups) {
    const size_t words = page.tokens / (is_wide(group.form) ? 2 : 4);
    for_feature_parts(group, 0, [&](int, int features, int within, size_t index) LOWKEY_INLINE_LAMBDA {
      const ValuePlanes<1> planes{page, group, index, features, within};
      const auto store = [&](int i, int, VW x)
                             LOWKEY_INLINE_LAMBDA { hn::StoreU(x, DW(), staged + i * lanes); };
      expand<1>(group.form, page.tokens, tables, planes, store, store);
      staged += words * lanes;
    });
  }
}

// What add_rows() adds up: values of some pages, weights [row][order][words of the batch].
struct AddRows {
  const PageCodes* pages = nullptr;  // of one vector
  int num_pages;
  const uint32_t* weights;
  size_t weight_stride;
  WeightRow orders;
  int first_page;        // in the batch
  const float* factors;  // [row][page][narrow, wide]
  size_t factor_stride;

  HWY_INLINE const uint32_t* weights_of(CodeForm form, int page) const {
    return weights + orders.at(form) + (first_page + page) * (pages->tokens / (is_wide(form) ? 2 : 4));
  }
  HWY_INLINE const float* factors_of(CodeForm form, int page) const {
    return factors + 2 * (first_page + page) + is_wide(form);
  }
};

// Integer sums of a vector of features times their factor, onto the accumulators.
template <int kRows>
HWY_INLINE void add_sums(const VI (&sums)[kRows], const float* factors, size_t factor_stride, float* acc,
                         size_t acc_stride, size_t count) {
  const DF d;
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const VF factor = hn::Set(d, factors[r * factor_stride]);
    float* out = acc + r * acc_stride;
    store_first(hn::MulAdd(hn::ConvertTo(d, sums[r]), factor, load_first(d, out, count)), d, out, count);
  }
}

// Weights times values of one page, for kRows rows and kBlocks vectors of features.
template <int kRows, int kBlocks>
HWY_INLINE void add_part(const ValuePlanes<kBlocks>& planes, const Tables& tables, const uint32_t* w,
                         size_t w_stride, VI (&sums)[kBlocks][kRows]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) sums[b][r] = hn::Zero(DI());
  }
  const auto add_narrow = [&](int quad, int b, VW bytes) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      sums[b][r] = dot4(sums[b][r], hn::Set(DW(), w[r * w_stride + quad]), bytes);
  };
  const auto add_wide = [&](int pair, int b, VW x) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[b][r] = dot2(sums[b][r], hn::Set(DW(), w[r * w_stride + pair]), x);
  };
  expand<kBlocks>(planes.group.form, planes.page.tokens, tables, planes, add_narrow, add_wide);
}

// kBlocks vectors of features of all pages, which ValuePlanes describes. Accumulators stay in registers.
template <int kRows, int kBlocks>
HWY_INLINE void add_pages(const CodeGroup& group, size_t index, int features, int within, const AddRows& add,
                          const Tables& tables, float* acc, size_t acc_stride) {
  const DF d;
  const size_t lanes = hn::Lanes(d), count = features - within;
  VF totals[kBlocks][kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) totals[b][r] = load_first(d, acc + r * acc_stride + b * lanes, count);
  }
  for (int i = 0; i < add.num_pages; ++i) {
    VI sums[kBlocks][kRows];
    add_part<kRows, kBlocks>({add.pages[i], group, index, features, within}, tables,
                             add.weights_of(group.form, i), add.weight_stride, sums);
    const float* factors = add.factors_of(group.form, i);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const VF factor = hn::Set(d, factors[r * add.factor_stride]);
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b)
        totals[b][r] = hn::MulAdd(hn::ConvertTo(d, sums[b][r]), factor, totals[b][r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) store_first(totals[b][r], d, acc + r * acc_stride + b * lanes, count);
  }
}

template <int kRows>
void add_rows(const CodeSide& side, const AddRows& add, float* acc, size_t acc_stride) {
  const Tables tables(kCodeTables.value_nibbles, kCodeTables.value_crumbs);
  for (const CodeGroup& group : side.groups) {
    float* out = acc + group.feature;
    int f = 0;
    if (hn::Lanes(DW()) == kGroupFeatures) {  // two groups at once: they share the weights
      for (; f + 2 * kGroupFeatures <= group.features; f += 2 * kGroupFeatures)
        add_pages<kRows, 2>(group, static_cast<size_t>(f / kGroupFeatures), kGroupFeatures, 0, add, tables,
                            out + f, acc_stride);
    }
    for_feature_parts(group, f, [&](int at, int features, int within, size_t index) LOWKEY_INLINE_LAMBDA {
      add_pages<kRows, 1>(group, index, features, within, add, tables, out + at, acc_stride);
    });
  }
}

// The same from staged values of one page.
template <int kRows>
void add_staged_rows(const CodeSide& side, const uint32_t* staged, const AddRows& add, float* acc,
                     size_t acc_stride) {
  const size_t lanes = hn::Lanes(DW());
  for (const CodeGroup& group : side.groups) {
    const bool wide = is_wide(group.form);
    const int words = add.pages->tokens / (wide ? 2 : 4);
    const uint32_t* w = add.weights_of(group.form, 0);
    for_feature_parts(group, 0, [&](int at, int features, int within, size_t) LOWKEY_INLINE_LAMBDA {
      VI sums[1][kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[0][r] = hn::Zero(DI());
      for (int i = 0; i < words; ++i, staged += lanes) {
        const VW x = hn::LoadU(DW(), staged);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const VW weight = hn::Set(DW(), w[r * add.weight_stride + i]);
          sums[0][r] = wide ? dot2(sums[0][r], weight, x) : dot4(sums[0][r], weight, x);
        }
      }
      add_sums<kRows>(sums[0], add.factors_of(group.form, 0), add.factor_stride, acc + group.feature + at,
                      acc_stride, features - within);
    });
  }
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LOWKEY_CODE_PRODUCTS_INL_H_
