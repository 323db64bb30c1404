// The arithmetic of attention in pairs of bf16 (vdpbf16ps): queries and softmax weights are rounded to bf16
// as keys and values are, sums are f32. What a row gets is one chain of pair products per score (features
// ascending) and per feature (tokens ascending), and one softmax step per batch of tokens: it depends on the
// row alone, whatever rows come with it. Rows are divided by the sum of the rounded weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/bf16_tiles.h"
#include "kernels/cpu/encoded_pages.h"

namespace lowkey::kernels {

// Consecutive tokens in tiles of `tokens` each, and the rows that see some of them.
struct Bf16Batch {
  const Bf16Tile* tiles = nullptr;  // those that no row sees are not read
  int num_tiles = 0;
  int tokens = 0;  // of a tile
  int key_dim = 0, value_dim = 0;
  Bf16Tile next;  // that is likely to be read next, for the prefetcher; null: unknown

  const uint16_t* queries = nullptr;  // bf16 [rows][query_stride], times the softmax scale
  ptrdiff_t query_stride = 0;
  int rows = 0;
  const int* begin =
      nullptr;  // [rows]: row r sees tokens begin[r] .. end[r] - 1 of the batch; none if not less
  const int* end = nullptr;
  float soft_cap = 0;              // as in FeatureQueries
  const float* offsets = nullptr;  // [rows]
  AttentionState state;            // of the rows
};

// Of one thread; grown, never shrunk.
struct Bf16Scratch {
  std::vector<float> scores;
  std::vector<uint16_t> weights;
};

// REQUIRES: has_bf16_pairs(); tokens and dims multiples of kTileStep.
void attend_pairs(const Bf16Batch& batch, Bf16Scratch& scratch);

}  // namespace lowkey::kernels
