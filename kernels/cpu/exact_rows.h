// Attention of query rows to exact rows of consecutive slots: the sink, and every row's own page up to
// itself.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/bf16_attention.h"
#include "kernels/cpu/encoded_pages.h"

namespace lowkey::kernels {

struct ExactRows {
  const std::byte* keys = nullptr;  // [tokens][dim] of `dtype`
  const std::byte* values = nullptr;
  DType dtype = DType::kBf16;
  int tokens = 0;
  int dim = 0;
  FeatureQueries
      queries;          // of those that see some of them, in the head's own coordinates; `rounded`: in pairs
  int group = 1;        // queries of one slot
  int first_valid = 1;  // tokens that the first slot's see, each further slot one more, up to all
  int hidden = 0;       // front tokens that the first slot's do not see, each further slot one more; may be
                        // less than 0
};

// Of one thread: keeps its scratch between calls.
class ExactTiles {
 public:
  // The state has a row for each query.
  void see(const ExactRows& rows, const AttentionState& state);

 private:
  void see_f32(const ExactRows& rows, const AttentionState& state);
  void see_pairs(const ExactRows& rows, const AttentionState& state);

  std::vector<float> key_tile_, value_tile_, scores_;
  std::vector<uint16_t> key_pairs_, value_pairs_;
  std::vector<int> begin_, end_;
  Bf16Scratch scratch_;
};

}  // namespace lowkey::kernels
