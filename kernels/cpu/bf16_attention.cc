#include "kernels/cpu/bf16_attention.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/scratch.h"

#if defined(__x86_64__)
#include "kernels/cpu/bf16_dots.h"
#include "kernels/cpu/bf16_math.h"
#endif

namespace lowkey::kernels {

#if defined(__x86_64__)

namespace {

// Rows that pass over a batch together: two vectors of sums each fill the registers, and their scores,
// weights and the batch's tiles stay in the L1 cache.
constexpr int kRowsTogether = 12;
constexpr int kVector = 16;           // f32 lanes
constexpr int kPacked = 2 * kVector;  // weights that are rounded together
constexpr float kHidden = -1e30f;     // the score of a token that a row does not see: its weight is 0

int round_up(int n, int step) {
  return (n + step - 1) / step * step;
}

// Some rows of a batch, and the tokens of it that any of them sees.
struct RowTile {
  const Bf16Batch& batch;
  int row;
  int rows;
  int begin = 0, end = 0;
  bool prefetch;  // the first to read the tiles
  float* scores;  // [rows][stride], of tokens from 0 on
  uint16_t* weights;
  ptrdiff_t stride;

  int first_tile() const { return begin / batch.tokens; }
  int end_tile() const { return (end + batch.tokens - 1) / batch.tokens; }
  // Of the tile, those to compute; a whole number of vectors, and of pairs.
  int scored(int tile) const { return std::min(batch.tokens, round_up(end - tile * batch.tokens, kVector)); }
  int weighed(int tile) const { return std::min(batch.tokens, round_up(end - tile * batch.tokens, 2)); }
  const Bf16Tile& after(int tile) const {
    return tile + 1 < batch.num_tiles ? batch.tiles[tile + 1] : batch.next;
  }
};

template <int kRows, int kVectors>
LOWKEY_BF16_TARGET void score_tokens(const RowTile& r, int tile, int token) {
  const Bf16Batch& batch = r.batch;
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[i][v] = _mm512_setzero_ps();
  }
  const uint16_t* queries = batch.queries + r.row * batch.query_stride;
  const uint16_t* keys = batch.tiles[tile].keys + 2 * token;
  const ptrdiff_t step = 2 * ptrdiff_t{batch.tokens};
  const int pairs = batch.key_dim / 2;
  const uint16_t* ahead = r.after(tile).keys;
  if (r.prefetch && ahead != nullptr) {
    ahead += ptrdiff_t{token} * batch.key_dim;
    add_pairs<kRows, kVectors, kVectors>(sums, queries, batch.query_stride, keys, kPacked, step, pairs,
                                         ahead);
  } else {
    add_pairs<kRows, kVectors, 0>(sums, queries, batch.query_stride, keys, kPacked, step, pairs, nullptr);
  }
  float* scores = r.scores + ptrdiff_t{tile} * batch.tokens + token;
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(scores + i * r.stride + v * kVector, sums[i][v]);
  }
}

template <int kRows>
void score_rows(const RowTile& r) {
  for (int tile = r.first_tile(); tile < r.end_tile(); ++tile) {
    const int tokens = r.scored(tile);
    int token = 0;
    for (; token + kPacked <= tokens; token += kPacked) score_tokens<kRows, 2>(r, tile, token);
    if (token < tokens) score_tokens<kRows, 1>(r, tile, token);
  }
}

// Features [feature, feature + 16 kVectors) of the accumulators.
template <int kRows, int kVectors>
LOWKEY_BF16_TARGET void add_features(const RowTile& r, int feature) {
  const Bf16Batch& batch = r.batch;
  float* acc = batch.state.acc + ptrdiff_t{r.row} * batch.state.stride + feature;
  const ptrdiff_t stride = batch.state.stride, group = ptrdiff_t{kVector} * batch.tokens;
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[i][v] = _mm512_loadu_ps(acc + i * stride + v * kVector);
  }
  for (int tile = r.first_tile(); tile < r.end_tile(); ++tile) {
    const uint16_t* weights = r.weights + ptrdiff_t{tile} * batch.tokens;
    const ptrdiff_t at = ptrdiff_t{feature} * batch.tokens;
    const uint16_t* values = batch.tiles[tile].values + at;
    const int pairs = r.weighed(tile) / 2;
    const uint16_t* ahead = r.after(tile).values;
    if (r.prefetch && ahead != nullptr) {
      add_pairs<kRows, kVectors, kVectors>(sums, weights, r.stride, values, group, kPacked, pairs,
                                           ahead + at);
    } else {
      add_pairs<kRows, kVectors, 0>(sums, weights, r.stride, values, group, kPacked, pairs, nullptr);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(acc + i * stride + v * kVector, sums[i][v]);
  }
}

template <int kRows>
void add_rows(const RowTile& r) {
  const int dim = r.batch.value_dim;
  int feature = 0;
  for (; feature + 2 * kVector <= dim; feature += 2 * kVector) add_features<kRows, 2>(r, feature);
  if (feature < dim) add_features<kRows, 1>(r, feature);
}

// Scores of tokens in [first, last) that the row does not see.
LOWKEY_BF16_TARGET void hide(float* scores, int first, int last, int begin, int end) {
  const auto below = [](int n) { return (1u << std::clamp(n, 0, kVector)) - 1; };
  for (int t = first; t < last; t += kVector) {
    const auto seen = static_cast<__mmask16>(below(end - t) & ~below(begin - t));
    if (seen == 0xffff) continue;
    const __m512 hidden = _mm512_set1_ps(kHidden);
    _mm512_storeu_ps(scores + t, _mm512_mask_loadu_ps(hidden, seen, scores + t));
  }
}

// The row's maximum over what it has seen; what it has summed up is brought there.
LOWKEY_BF16_TARGET void raise_maximum(const AttentionState& state, int row, int dim, const float* scores,
                                      int first, int last) {
  __m512 maxima = _mm512_loadu_ps(scores + first);
  for (int t = first + kVector; t < last; t += kVector)
    maxima = _mm512_max_ps(maxima, _mm512_loadu_ps(scores + t));
  const float maximum = _mm512_reduce_max_ps(maxima);
  if (!(maximum > state.maximum[row])) return;
  const float old = state.maximum[row];
  state.maximum[row] = maximum;
  if (state.sum[row] == 0.0f) return;  // nothing yet
  const __m512 shrink = power_of_two(_mm512_set1_ps((old - maximum) * kLog2E));
  state.sum[row] *= _mm512_cvtss_f32(shrink);
  float* acc = state.acc + ptrdiff_t{row} * state.stride;
  for (int f = 0; f < dim; f += kVector)
    _mm512_storeu_ps(acc + f, _mm512_mul_ps(_mm512_loadu_ps(acc + f), shrink));
}

// Scores become rounded weights; their sum.
LOWKEY_BF16_TARGET float weigh(const float* scores, int first, int last, float maximum, uint16_t* weights) {
  const __m512 scale = _mm512_set1_ps(kLog2E), shift = _mm512_set1_ps(maximum * kLog2E);
  const auto ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
  __m512 sums = _mm512_setzero_ps();
  for (int t = first; t < last; t += kPacked) {
    const __m512 low = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores + t), scale, shift));
    const __m512 high = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores + t + kVector), scale, shift));
    const __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(weights + t, reinterpret_cast<__m512i>(rounded));
    sums = _mm512_dpbf16_ps(sums, rounded, ones);
  }
  return _mm512_reduce_add_ps(sums);
}

// Online softmax of the rows (Milakov & Gimelshein 2018). Vectors begin at the same tokens for all rows.
void weigh_rows(const RowTile& r) {
  const Bf16Batch& batch = r.batch;
  const AttentionState& state = batch.state;
  const int first = r.begin / kPacked * kPacked, last = round_up(r.end, kPacked);
  for (int i = 0; i < r.rows; ++i) {
    const int row = r.row + i, begin = batch.begin[row], end = batch.end[row];
    if (begin >= end) continue;
    float* scores = r.scores + i * r.stride;
    if (batch.soft_cap != 0) {
      const float offset = batch.offsets == nullptr ? 0.0f : batch.offsets[row];
      simd::soft_cap_row(scores + begin, offset, batch.soft_cap, end - begin);
    }
    if (begin > first || end < last) hide(scores, first, last, begin, end);
    raise_maximum(state, row, batch.value_dim, scores, first, last);
  }
  for (int i = 0; i < r.rows; ++i) {
    const int row = r.row + i;
    uint16_t* weights = r.weights + i * r.stride;
    if (batch.begin[row] < batch.end[row]) {
      state.sum[row] += weigh(r.scores + i * r.stride, first, last, state.maximum[row], weights);
    } else {
      std::fill(weights + first, weights + last, uint16_t{0});
    }
  }
}

template <int kRows>
void attend_rows(const RowTile& r) {
  score_rows<kRows>(r);
  weigh_rows(r);
  add_rows<kRows>(r);
}

using RowsFunction = void (*)(const RowTile&);

template <size_t... kCounts>
constexpr std::array<RowsFunction, sizeof...(kCounts)> functions_of(std::index_sequence<kCounts...>) {
  return {attend_rows<static_cast<int>(kCounts) + 1>...};
}

}  // namespace

void attend_pairs(const Bf16Batch& batch, Bf16Scratch& scratch) {
  static constexpr auto functions = functions_of(std::make_index_sequence<kRowsTogether>());
  const ptrdiff_t stride = round_up(batch.num_tiles * batch.tokens, kPacked);
  // At once for the longest batch that pages make, so that a sequence that grows allocates nothing.
  const size_t elements = kRowsTogether * std::max<size_t>(stride, kBatchTokens);
  float* scores = grow_aligned(scratch.scores, elements);
  uint16_t* weights = grow_aligned(scratch.weights, elements);
  const int tiles = (batch.rows + kRowsTogether - 1) / kRowsTogether;
  for (int t = 0; t < tiles; ++t) {
    RowTile r{.batch = batch,
              .row = batch.rows * t / tiles,
              .rows = batch.rows * (t + 1) / tiles - batch.rows * t / tiles,
              .prefetch = t == 0,
              .scores = scores,
              .weights = weights,
              .stride = stride};
    r.begin = batch.num_tiles * batch.tokens;
    for (int row = r.row; row < r.row + r.rows; ++row) {
      if (batch.begin[row] >= batch.end[row]) continue;
      r.begin = std::min(r.begin, batch.begin[row]);
      r.end = std::max(r.end, batch.end[row]);
    }
    if (r.begin < r.end) functions[r.rows - 1](r);
  }
}

#else

void attend_pairs(const Bf16Batch&, Bf16Scratch&) {
  __builtin_trap();
}

#endif

}  // namespace lowkey::kernels
