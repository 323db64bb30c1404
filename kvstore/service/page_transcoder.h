// Pages of one layout to pages of another: exact while hot, smaller when spilled. The hot page's rows are
// coded as the spill recipe would have coded them in the first place; on the way back the rows that the codes
// stand for, rounded to the engine's dtype, become a hot page again.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/cpu/page_encode.h"
#include "kernels/cpu/page_tile.h"
#include "kernels/page/page_layout.h"

namespace lowkey::kvstore {

// Of one thread: keeps its scratch between calls.
class PageTranscoder {
 public:
  using Slabs = std::array<std::span<std::byte>, kernels::kMaxSlabs>;  // levels, then the sink
  using ConstSlabs = std::array<std::span<const std::byte>, kernels::kMaxSlabs>;

  // Whether pages of the two can be told in each other's form. kUsage with what differs.
  static Status check(const kernels::PageLayout& hot, const kernels::PageLayout& spilled);

  // REQUIRES: check() passes.
  PageTranscoder(kernels::PageLayout hot, kernels::PageLayout spilled);

  const kernels::PageLayout& hot() const { return hot_.layout; }
  const kernels::PageLayout& spilled() const { return spilled_.layout; }
  // The way there and back changes values.
  bool lossy() const { return lossy_; }

  // All levels of a page; the sink where `from` has one. What lies behind the last plane of a slab is zero.
  void spill(const ConstSlabs& hot, const Slabs& spilled);
  // The other way; slabs of `hot` that are empty are not wanted.
  void restore(const ConstSlabs& spilled, const Slabs& hot);

 private:
  // One layout, and its maps from features to rows.
  struct Form {
    kernels::PageLayout layout;
    std::vector<std::vector<float>> maps;  // by vector; empty: the features are the row
  };
  static Form form_of(kernels::PageLayout layout);
  void transcode(const Form& from, const ConstSlabs& source, const kernels::PageLayout& to,
                 const Slabs& target);
  // Rows of all heads of a vector, [head][page_tokens][head_dim] of the dtype.
  void read_rows(const Form& from, size_t vector, const ConstSlabs& source, std::byte* rows);

  Form hot_, spilled_;
  bool lossy_ = true;
  kernels::simd::PageEncoder encoder_;
  kernels::simd::TileScratch scratch_;
  std::vector<float> tile_, mapped_;
  std::vector<std::byte> rows_, unwanted_;
};

}  // namespace lowkey::kvstore
