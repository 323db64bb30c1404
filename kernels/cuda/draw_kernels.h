// draw_token() (kernels/ops/token_draw.h) for many rows: one block each.
//
// Weights exp((logit - maximum) / temperature) become integers, 2^44 for the most likely token's, so that
// sums do not depend on the order of threads; a vocabulary holds less than 2^19 tokens. Nothing is sorted:
// the place where a running sum over tokens, best first, passes a number is found by histograms over the bits
// of the logits, three times 10 or 11 of them, then among equal logits by their ids. The host sums in
// float64: another token than its own comes out where the uniform number lies within about 2^-35 of a
// boundary.
#pragma once

#include <cuda_runtime.h>

#include "kernels/ops/token_draw.h"

namespace lowkey::kernels::cuda {

inline constexpr int kMaxDrawVocab = 1 << 19;

// Logits as Backend::draw_tokens() has them.
struct LogitPieces {
  const float* data = nullptr;
  int64_t piece_stride = 0;  // elements from one piece to the next
  int cols = 0;              // of a row of a piece
  int vocab = 0;
};

// `draws`, `tokens` [num_draws]: device memory.
void launch_draw_tokens(cudaStream_t stream, const LogitPieces& logits, const TokenDraw* draws, int num_draws,
                        DrawnToken* tokens);

}  // namespace lowkey::kernels::cuda
