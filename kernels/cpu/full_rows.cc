#include "kernels/cpu/full_rows.h"

#include <algorithm>
#include <cstdint>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/full_rows.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using D = hn::ScalableTag<float>;
using DW = hn::ScalableTag<uint32_t>;
using V = hn::Vec<D>;
using VW = hn::Vec<DW>;

// Rows whose sums fit the registers beside two vectors of tokens or features.
constexpr int kMaxRows = 4;
constexpr int kPairs = kGroupFeatures / 2;  // words of a token in a key's plane

// The two elements of every word.
HWY_INLINE V even(VW words) {
  return hn::BitCast(D(), hn::ShiftLeft<16>(words));
}
HWY_INLINE V odd(VW words) {
  return hn::BitCast(D(), hn::And(words, hn::Set(DW(), 0xffff0000u)));
}

HWY_INLINE const uint32_t* words_of(const FullPage& page, const Plane& plane) {
  return reinterpret_cast<const uint32_t*>(page.slabs[plane.level] + plane.offset);
}

// From a plane to the same one of the page to prefetch, in words. With every word that is read the same one
// there is prefetched: one burst would fill the line buffers and wait.
HWY_INLINE ptrdiff_t ahead_of(const FullPage& page, const Plane& plane) {
  return reinterpret_cast<const uint32_t*>(page.next[plane.level]) -
         reinterpret_cast<const uint32_t*>(page.slabs[plane.level]);
}

HWY_INLINE VW load_ahead(const uint32_t* words, ptrdiff_t ahead) {
  __builtin_prefetch(words + ahead, 0, 3);
  return hn::LoadU(DW(), words);
}

template <int kRows, int kBlocks>
HWY_INLINE void score_tokens(const FullPage& page, const float* queries, size_t stride, int t, float* scores,
                             size_t score_stride) {
  const D d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const size_t tokens = page.layout->page_tokens;
  V sums[kRows][kBlocks];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = hn::Zero(d);
  }
  const Plane* planes = page.layout->planes.data() + page.vector->first_plane;
  for (int g = 0; g < page.vector->num_planes; ++g) {
    const ptrdiff_t ahead = ahead_of(page, planes[g]);
    const uint32_t* words = words_of(page, planes[g]) + t;
    const float* query = queries + static_cast<size_t>(g) * kGroupFeatures;
    for (int pair = 0; pair < kPairs; ++pair, words += tokens, query += 2) {
      VW x[kBlocks];
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) x[b] = load_ahead(words + b * lanes, ahead);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const V first = hn::Set(d, query[r * stride]), second = hn::Set(d, query[r * stride + 1]);
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          sums[r][b] = hn::MulAdd(first, even(x[b]), sums[r][b]);
          sums[r][b] = hn::MulAdd(second, odd(x[b]), sums[r][b]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) hn::StoreU(sums[r][b], d, scores + r * score_stride + t + b * lanes);
  }
}

template <int kRows>
void score_rows(const FullPage& page, const float* queries, size_t stride, float* scores,
                size_t score_stride) {
  const int lanes = static_cast<int>(hn::Lanes(D())), tokens = page.layout->page_tokens;
  int t = 0;
  for (; t + 2 * lanes <= tokens; t += 2 * lanes)
    score_tokens<kRows, 2>(page, queries, stride, t, scores, score_stride);
  for (; t < tokens; t += lanes)
    score_tokens<kRows, 1>(page, queries, stride, t, scores, score_stride);
}

// kBlocks groups, or as many parts of one, at once: their sums are independent chains.
template <int kRows, int kBlocks>
HWY_INLINE void add_groups(const FullPage& page, const Plane* planes, int f, const float* weights,
                           size_t stride, float* acc, size_t acc_stride) {
  const D d;
  V sums[kRows][kBlocks];
  const uint32_t* words[kBlocks];
  ptrdiff_t ahead[kBlocks];
#pragma GCC unroll 2
  for (int b = 0; b < kBlocks; ++b) {
    words[b] = words_of(page, planes[b]) + f;
    ahead[b] = ahead_of(page, planes[b]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[r][b] = hn::LoadU(d, acc + r * acc_stride + planes[b].feature + f);
  }
  const int pairs = page.layout->page_tokens / 2;
  for (int pair = 0; pair < pairs; ++pair, weights += 2) {
    VW x[kBlocks];
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b)
      x[b] = load_ahead(words[b] + static_cast<size_t>(pair) * kGroupFeatures, ahead[b]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const V first = hn::Set(d, weights[r * stride]), second = hn::Set(d, weights[r * stride + 1]);
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) {
        sums[r][b] = hn::MulAdd(first, even(x[b]), sums[r][b]);
        sums[r][b] = hn::MulAdd(second, odd(x[b]), sums[r][b]);
      }
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < kBlocks; ++b) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) hn::StoreU(sums[r][b], d, acc + r * acc_stride + planes[b].feature + f);
  }
}

template <int kRows>
void add_rows(const FullPage& page, const float* weights, size_t stride, float* acc, size_t acc_stride) {
  const int lanes = static_cast<int>(hn::Lanes(D())), groups = page.vector->num_planes;
  const Plane* planes = page.layout->planes.data() + page.vector->first_plane;
  int g = 0;
  for (; g + 2 <= groups; g += 2) {
    for (int f = 0; f < kGroupFeatures; f += lanes)
      add_groups<kRows, 2>(page, planes + g, f, weights, stride, acc, acc_stride);
  }
  for (; g < groups; ++g) {
    for (int f = 0; f < kGroupFeatures; f += lanes)
      add_groups<kRows, 1>(page, planes + g, f, weights, stride, acc, acc_stride);
  }
}

void score_full_rows(const FullPage& page, const float* queries, int stride, int rows, float* scores,
                     int score_stride) {
  FullPage at = page;
  for (int row = 0; row < rows; row += kMaxRows, at.next = at.slabs) {
    const float* query = queries + static_cast<size_t>(row) * stride;
    float* out = scores + static_cast<size_t>(row) * score_stride;
    switch (std::min(kMaxRows, rows - row)) {
      case 1:
        score_rows<1>(at, query, stride, out, score_stride);
        break;
      case 2:
        score_rows<2>(at, query, stride, out, score_stride);
        break;
      case 3:
        score_rows<3>(at, query, stride, out, score_stride);
        break;
      default:
        score_rows<4>(at, query, stride, out, score_stride);
    }
  }
}

void add_full_rows(const FullPage& page, const float* weights, int stride, int rows, float* acc,
                   int acc_stride) {
  FullPage at = page;
  for (int row = 0; row < rows; row += kMaxRows, at.next = at.slabs) {
    const float* weight = weights + static_cast<size_t>(row) * stride;
    float* out = acc + static_cast<size_t>(row) * acc_stride;
    switch (std::min(kMaxRows, rows - row)) {
      case 1:
        add_rows<1>(at, weight, stride, out, acc_stride);
        break;
      case 2:
        add_rows<2>(at, weight, stride, out, acc_stride);
        break;
      case 3:
        add_rows<3>(at, weight, stride, out, acc_stride);
        break;
      default:
        add_rows<4>(at, weight, stride, out, acc_stride);
    }
  }
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(score_full_rows);
HWY_EXPORT(add_full_rows);

bool is_full_bf16(const PageLayout& layout, const VectorLayout& vector, int levels) {
  if (vector.quantizer != Quantizer::kFull || layout.dtype != DType::kBf16 ||
      vector.num_planes * kGroupFeatures != vector.dim)
    return false;
  const Plane* planes = layout.planes.data() + vector.first_plane;
  return std::all_of(planes, planes + vector.num_planes,
                     [&](const Plane& plane) { return plane.level < levels; });
}

void score_full_rows(const FullPage& page, const float* queries, int stride, int rows, float* scores,
                     int score_stride) {
  HWY_DYNAMIC_DISPATCH(score_full_rows)(page, queries, stride, rows, scores, score_stride);
}

void add_full_rows(const FullPage& page, const float* weights, int stride, int rows, float* acc,
                   int acc_stride) {
  HWY_DYNAMIC_DISPATCH(add_full_rows)(page, weights, stride, rows, acc, acc_stride);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
