// Encoded pages of every format, by f32 tiles: each page's features are decoded once into the L1 cache and
// serve all rows of the block.
#pragma once

#include <vector>

#include "kernels/cpu/encoded_pages.h"
#include "kernels/cpu/page_tile.h"

namespace lowkey::kernels {

class FloatPages final : public EncodedPages {
 public:
  void prepare(const EncodedHead& head, int levels, const FeatureQueries& queries) override;
  void see(const PageRun& run, const AttentionState& state) override;

 private:
  EncodedHead head_;
  int levels_ = 0;
  FeatureQueries queries_;
  std::vector<float> key_tile_, value_tile_, scores_;
  simd::TileScratch scratch_;
};

}  // namespace lowkey::kernels
