// Drawing a token from one row of logits, without rules that change them: what Backend::draw_tokens() means.
// The plain version; backends have faster ones (kernels/cpu/row_draw.h) that yield the same tokens.
#pragma once

#include <cstdint>
#include <span>

namespace lowkey::kernels {

// How one row is drawn from. Plain bytes: devices read it as it is.
struct TokenDraw {
  int32_t row = 0;         // of the logits
  int32_t top_k = 0;       // only the so many most likely tokens; 0: all
  double temperature = 1;  // >= 0; 0: the most likely token
  double top_p = 1;        // (0, 1]: the fewest tokens of what is left that hold this much of it
  double min_p = 0;        // [0, 1], of the most likely token's probability
  double uniform = 0;      // [0, 1): where in the distribution
  int32_t logprob = 0;     // not 0: wanted
  int32_t reserved = 0;
};

struct DrawnToken {
  int32_t token = -1;  // below 0: the logits are not numbers, or hold no finite maximum
  float logprob = 0;   // log-softmax of the logits as they are; where wanted
};

// Order: temperature, then min-p, then top-k, then top-p among what is left. Ties go to the lowest token id.
// Where top-k or top-p cut, tokens are taken best first, otherwise in the order of ids. Sums are in float64.
DrawnToken draw_token(std::span<const float> logits, const TokenDraw& draw);

}  // namespace lowkey::kernels
