// Attention on encoded pages in integers: THE arithmetic of layouts that CodePlan takes, in prefill and
// decode alike. Codes become bytes (narrow) or 16-bit words (wide) by table look-ups in registers; queries
// are rounded to 8 (narrow) or 16 bits (wide), softmax weights times value norms to 8 or 16 bits relative to
// their own page's maximum. Dot products are exact, and the float operations around them have a fixed order
// per (row, page): a row's bits depend neither on the other rows nor on how pages are cut into calls, as long
// as calls begin and end at multiples of kCodeBatchTokens or at the last page a row sees.
//
// Coordinates: everything here is in features of the stored vectors. The caller maps queries into the key's
// features, with softmax scale and static key scales folded in, and what comes out of the value's features,
// times the static value scales, back to the head's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/code_plan.h"

namespace lowkey::kernels::simd {

// Pages of one such stretch of tokens, aligned to it, share one step of the online softmax.
inline constexpr int kCodeBatchTokens = 128;

// Query rows, mapped and rounded. Narrow and wide features have one factor each per row: a feature's rounding
// error then is at most 1/254 of the row's largest narrow one, far below what its 4 or 2 bits lose.
struct CodeQueries {
  int rows = 0;
  int stride = 0;                   // words of a row
  std::vector<uint32_t> words;      // [rows][stride]: 4 bytes (narrow) or 2 words (wide) each
  std::vector<int32_t> bias;        // [rows]: key bytes are unsigned, 128 too large
  std::vector<float> narrow, wide;  // [rows]: score per unit of the integer sums
  std::vector<float> shift;         // [rows]: added to every score
};

// features: f32 [rows][stride], of which plan.key.dim are read; shifts: [rows], or null for zeros.
void encode_queries(const CodePlan& plan, const float* features, int stride, const float* shifts, int rows,
                    CodeQueries& queries);

// (maximum, sum, accumulator) of every row; sum 0 and maximum -infinity: nothing seen yet.
struct CodeState {
  float* maximum;
  float* sum;
  float* acc;  // [rows][stride], >= plan.value.dim, in units of scale
  int stride;
};

// Pages [first_page, end_page) of one sequence. Row r stands at slot `begin` + r / `group` and sees the pages
// that end at or before it; pages that everybody sees: any `begin` beyond them.
struct CodeRun {
  std::byte* const* slabs = nullptr;  // slabs[page * kMaxSlabs + slab]
  int first_page = 0;
  int end_page = 0;
  int prefetch_end = 0;  // pages before it are worth prefetching
  int first_token = 0;   // of page 0: those before are somebody else's (the sink)
  int begin = 0;
  int group = 1;
};

// Of one thread; grown, never shrunk.
struct CodeScratch {
  std::vector<float> scores;      // [rows][kCodeBatchTokens]
  std::vector<uint32_t> weights;  // [rows][row of rounded weights]
  std::vector<float> factors;     // [rows][pages of a batch][narrow, wide]
  std::vector<uint32_t> staged;   // one page's K or V as bytes and words
};

void attend_codes(const CodePlan& plan, const CodeRun& run, const CodeQueries& queries,
                  const CodeState& state, CodeScratch& scratch);

}  // namespace lowkey::kernels::simd
