// The linear maps between one KV head's own coordinates and its stored features, kept from step to step.
//
// With y' the stored features, the head's slice of a row reads x' = mean + D^T y' (D: decode, the head's
// columns). So a query's score is q . x' = (D q) . y' + q . mean, and a weighted sum of values is D^T (sum w
// y') + mean sum w: queries are mapped once, sums mapped back once. Static scales of embedded codes are
// folded into D.
#pragma once

#include <vector>

#include "kernels/cpu/encoded_pages.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels {

struct HeadMap {
  EncodedHead head;
  // Null where the features are the head's own coordinates.
  const float* key = nullptr;    // [head_dim][tile_stride(key dim)]
  const float* value = nullptr;  // [value dim][tile_stride(head_dim)]
  // Null where zero. [head_dim]
  const float* key_mean = nullptr;
  const float* value_mean = nullptr;
};

class HeadMaps {
 public:
  // A step begins: numbers of earlier ones are void, maps of layouts with an id are kept.
  void clear();
  // The maps of all heads of a bank of a layout, which must live until clear(); the number to ask at() with.
  int add(const PageLayout& layout, int bank);
  const HeadMap& at(int index, int head) const { return banks_[used_[index]].heads[head]; }

 private:
  struct Bank {
    uint64_t layout_id = 0;  // 0: of this step only
    int bank = 0;
    std::vector<HeadMap> heads;
    std::vector<std::vector<float>> memory;  // of each head: key map, value map
  };
  static void refer(Bank& bank, const PageLayout& layout, int head);
  static void fill(Bank& bank, const PageLayout& layout, int head);

  std::vector<Bank> banks_;
  std::vector<int> used_;  // of the step, by number
  std::vector<const PageLayout*> layouts_;
};

}  // namespace lowkey::kernels
