// The tokens dial of a recipe: for which tokens the cache is kept. Without it, for all.
#pragma once

#include <cstdint>

namespace lowkey::kvstore {

enum class TokenScore : uint8_t { kColumnSum, kWindowSum, kKeyNorm };
enum class BudgetShape : uint8_t { kUniform, kPyramid };

// `tokens:` of a recipe when not keep: all. Chosen once, when the prompt is complete.
struct TokenDial {
  TokenScore score = TokenScore::kColumnSum;
  double heavy = 0.25;   // share of the prompt's tokens, by score
  double recent = 0.25;  // share of the prompt's tokens, the newest
  BudgetShape shape = BudgetShape::kUniform;
  double pyramid_delta = 7;  // heavy share of the last bank: heavy / delta

  // Of one bank. kPyramid falls linearly with depth and averages `heavy` (MiniKV, arXiv:2411.18077, section
  // 3).
  double heavy_of_bank(int bank, int num_banks) const;
};

}  // namespace lowkey::kvstore
