// The arithmetic of attention on encoded pages in integers: what CodePages runs. Codes become bytes (narrow)
// or 16-bit words (wide) by table look-ups in registers; queries are rounded to 8 bits (narrow) or 16 (wide),
// softmax weights times value norms to 8 or 16 bits relative to the largest of their own page. Dot products
// are exact, and the float operations around them have a fixed order per row and page.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/code_plan.h"
#include "kernels/cpu/encoded_pages.h"

namespace lowkey::kernels::simd {

// Query rows, rounded. Narrow and wide features have one factor each per row: a narrow feature's rounding
// error is at most 1/254 of the row's largest, far below what its 4 or 2 bits lose.
struct CodeQueries {
  int rows = 0;
  int stride = 0;                   // words of a row
  std::vector<uint32_t> words;      // [rows][stride]: 4 bytes (narrow) or 2 words (wide) each
  std::vector<int32_t> bias;        // [rows]: key bytes are unsigned, 128 too large
  std::vector<float> narrow, wide;  // [rows]: score per unit of the integer sums
  float soft_cap = 0;               // as in FeatureQueries
  const float* offsets = nullptr;
};

void round_queries(const CodePlan& plan, const FeatureQueries& queries, CodeQueries& rounded);

// Of one thread; grown, never shrunk.
struct CodeScratch {
  std::vector<float> scores;      // [rows][tokens of a batch]
  std::vector<uint32_t> weights;  // [rows][rounded weights of a batch]
  std::vector<float> factors;     // [rows][pages of a batch][narrow, wide]
  std::vector<uint32_t> staged;   // one page's K or V as bytes and words
};

// EncodedPages::see().
void see_codes(const CodePlan& plan, const PageRun& run, const CodeQueries& queries,
               const AttentionState& state, CodeScratch& scratch);

}  // namespace lowkey::kernels::simd
