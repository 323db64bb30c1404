// Encoded pages of every format, by f32 tiles: each page's features are decoded once into the L1 cache and
// serve all rows of the block. Few rows read bf16 pages without the tile, with the same bits.
#pragma once

#include <vector>

#include "kernels/cpu/encoded_pages.h"
#include "kernels/cpu/full_rows.h"
#include "kernels/cpu/page_tile.h"

namespace lowkey::kernels {

class FloatPages final : public EncodedPages {
 public:
  void prepare(const EncodedHead& head, int levels, const FeatureQueries& queries) override;
  void see(const PageRun& run, const AttentionState& state) override;
  int stretch() const override { return 1; }

 private:
  simd::FullPage full_page(const PageRun& run, int page, const VectorLayout& vector) const;
  void score(const PageRun& run, int page, int first, int rows);
  void add(const PageRun& run, int page, int rows, float* acc, int acc_stride);

  EncodedHead head_;
  int levels_ = 0;
  bool full_keys_ = false, full_values_ = false;
  FeatureQueries queries_;
  std::vector<float> key_tile_, value_tile_, scores_;
  simd::TileScratch scratch_;
};

}  // namespace lowkey::kernels
