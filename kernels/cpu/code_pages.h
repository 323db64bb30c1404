// Encoded pages of embedded codes of 2, 4 and 8 bits, attended in integers (code_attention.h).
#pragma once

#include "kernels/cpu/code_attention.h"
#include "kernels/cpu/encoded_pages.h"

namespace lowkey::kernels {

class CodePages final : public EncodedPages {
 public:
  // Whether there is an integer kernel for these planes; if so, prepare() is for the same head and levels.
  bool can_read(const EncodedHead& head, int levels) {
    return plan_.make(*head.layout, *head.key, *head.value, levels);
  }

  void prepare(const EncodedHead&, int, const FeatureQueries& queries) override {
    simd::round_queries(plan_, queries, queries_);
  }
  void see(const PageRun& run, const AttentionState& state) override {
    simd::see_codes(plan_, run, queries_, state, scratch_);
  }
  int stretch() const override { return simd::code_batch_pages(plan_.page_tokens); }

 private:
  CodePlan plan_;
  simd::CodeQueries queries_;
  simd::CodeScratch scratch_;
};

}  // namespace lowkey::kernels
