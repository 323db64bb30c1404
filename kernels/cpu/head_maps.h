// The linear maps between one KV head's own coordinates and its stored features, prepared once per step.
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
  void clear() { count_ = 0; }
  // The maps of all heads of a bank of a layout, which must live until clear(); the number to ask at() with.
  // Knows what was added before. fill() the head maps of new ones before use.
  int add(const PageLayout& layout, int bank);
  int count() const { return count_; }
  int heads(int index) const { return banks_[index].layout->num_kv_heads; }
  // Maps of different (index, head) may be filled at once.
  void fill(int index, int head);
  const HeadMap& at(int index, int head) const { return banks_[index].heads[head]; }

 private:
  struct Bank {
    const PageLayout* layout = nullptr;
    int bank = 0;
    std::vector<HeadMap> heads;
    std::vector<std::vector<float>> memory;  // of each head: key map, value map
  };
  std::vector<Bank> banks_;  // the first count_; the others keep their memory
  int count_ = 0;
};

}  // namespace lowkey::kernels
