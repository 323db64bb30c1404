// draw_token() at the speed of a step: the same tokens, from vectors of exponentials and without sorting or
// copying what cannot be drawn. Sums are in another order than there, so that the same holds to the rounding
// of float64.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops/tensor.h"
#include "kernels/ops/token_draw.h"

namespace lowkey::kernels {

// Holds memory for its draws, grown and kept: one per thread.
class RowDraw {
 public:
  DrawnToken draw(std::span<const float> logits, const TokenDraw& draw);
  // From row draw.row of `parts` pieces, as Backend::draw_tokens() has them.
  DrawnToken draw(const Tensor& logits, int parts, int vocab, const TokenDraw& draw);

 private:
  struct Candidate {
    float logit;
    int32_t id;
    bool operator<(const Candidate& other) const {  // better
      return logit > other.logit || (logit == other.logit && id < other.id);
    }
  };
  struct Distribution;

  int32_t from_all(const Distribution& distribution, double uniform);
  int32_t from_best(const Distribution& distribution, const TokenDraw& draw);
  int32_t from_nucleus(const Distribution& distribution, const TokenDraw& draw);
  void keep_best(std::span<const float> logits, size_t count);
  void narrow(const Distribution& distribution, float bar, double wanted);
  size_t sort_leading(const Distribution& distribution, double wanted);
  int32_t pick(size_t count, double uniform) const;

  std::vector<float> whole_;           // of several pieces
  std::vector<double> sums_;           // of blocks
  std::vector<Candidate> candidates_;  // best first, as far as they are sorted
  std::vector<double> weights_;        // of the first candidates
};

}  // namespace lowkey::kernels
