// Decode attention on encoded pages at the speed of memory: few query rows per KV head, pages of 2-, 4- and
// 8-bit embedded codes or bf16 features (FastPlan). Same items and partial results as launch_attend_pages().
//
// One warp walks one item's pages through a ring of stages in shared memory. Codes go to the tensor cores as
// they lie in the page, a lane's word being a lane's operand: 2 and 4 bits become bytes by one table look-up
// per four elements (PRMT), scores and sums are integers; 8 bits become f16. What belongs to a feature is in
// the query or is left to the end, what belongs to a token multiplies its score or its weight.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/fast_plan.h"
#include "kernels/cuda/step_view.h"

namespace lowkey::kernels::cuda {

inline constexpr int kFastQueries = 8;  // query heads per KV head, at most

// A query as the fast kernels take it, per group and lane % 4: two words, bytes q and -q of four features
// (narrow), four f16 (wide) or four bf16 (full).
struct FastQuery {
  uint32_t words[kMaxFastGroups][4][2];
};

struct FastStep {
  const FastPlan* plans = nullptr;  // of one layout's bank: [head][level - 1]
  int num_levels = 0, num_plans = 0;
  FastQuery* queries = nullptr;  // [row][head][kFastQueries]
  float* factors = nullptr;      // [row][head][kFastQueries]: score per unit of the integer sums
  FastKind kind = FastKind::kNone;
  int page_tokens = 0, max_groups = 0;
  uint32_t stage_bytes = 0;  // the largest of the plans
};

struct DeviceLimits {
  int multiprocessors = 0;
  uint32_t shared_bytes = 0;  // that one block may have
};

// Whether a multiprocessor holds a ring of such stages.
bool fits_fast_attention(FastKind kind, uint32_t stage_bytes, const DeviceLimits& limits);

void launch_decode_attention(cudaStream_t stream, const StepView& step, const FastStep& fast,
                             const ItemList& items, const DeviceLimits& limits, const Partials& partials);

}  // namespace lowkey::kernels::cuda
