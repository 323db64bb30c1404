// The arithmetic of attention on tiles, in Highway. All of it is per query row in a fixed order, so a row's
// bits do not depend on which other rows are computed with it.
#pragma once

namespace lowkey::kernels::simd {

// c[rows][n] (+)= a[rows][k] b[k][n]: one fused multiply-add per k, ascending. n: a multiple of kTileLanes.
struct TileProduct {
  const float* a;
  int a_stride;
  const float* b;
  int b_stride;
  float* c;
  int c_stride;
  int rows, k, n;
  bool accumulate;
};
void multiply_tile(const TileProduct& product);

// Online softmax of query rows over one page (Milakov & Gimelshein 2018): of row r, scores[0 .. valid) with
// valid = min(tokens, first_valid + r / group) become weights e^(score - new maximum), the rest up to
// `stride` becomes 0; its sum and acc are rescaled to the new maximum. REQUIRES: first_valid >= 1.
struct SoftmaxRows {
  float* scores;  // [rows][stride], a multiple of kTileLanes
  int stride;
  int rows;
  int tokens;
  int first_valid;
  int group;
  float* maximum;  // [rows]
  float* sum;      // [rows]
  float* acc;      // [rows][acc_stride]
  int acc_stride;
  int dim;
};
void softmax_rows(const SoftmaxRows& softmax);

// scores = cap * tanh((scores + offset) / cap).
void soft_cap_row(float* scores, float offset, float cap, int n);

// (maximum, sum, acc) of one segment merged into another by log-sum-exp; an empty one (sum 0) changes
// nothing.
void merge_row(float& maximum, float& sum, float* acc, float other_maximum, float other_sum,
               const float* other_acc, int dim);

// Softmax weights of one row's query heads on `count` slots, added to their sums: scores[head][stride] of
// each.
struct WeightSums {
  const float* scores;
  int stride;
  int heads;
  int count;
  const float* maximum;      // [heads]
  const float* inverse_sum;  // [heads]
  float* columns;            // [count] each; null: not wanted
  float* window;
};
void add_weights(const WeightSums& sums);

// Accumulators over their sums: row r goes to out[r / group] of `out_stride`, the (r % group)-th `dim`
// floats.
struct ResultRows {
  const float* acc;  // [rows][acc_stride]
  int acc_stride;
  const float* sum;  // [rows]
  int rows;
  int group;
  int dim;
  float* out;
  int out_stride;
};
void store_results(const ResultRows& results);

// out = x * scale.
void scale_row(const float* x, float scale, float* out, int n);
// out += x * scale.
void add_scaled_row(const float* x, float scale, float* out, int n);
float dot_row(const float* x, const float* y, int n);

}  // namespace lowkey::kernels::simd
