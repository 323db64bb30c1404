// Encoded pages of embedded codes of 2, 4 and 8 bits, attended in integers (code_attention.h).
#pragma once

#include "kernels/cpu/code_attention.h"
#include "kernels/cpu/encoded_pages.h"

namespace lowkey::kernels {

class CodePages final : public EncodedPages {
 public:
  // Whether there is an integer kernel for these planes; if so, prepare() is for the same head and levels.
  bool can_read(const EncodedHead& head, int levels) {
    const Planned wanted{head.layout->id, head.key->first_plane, head.value->first_plane, levels};
    if (wanted.layout_id == 0 || wanted != planned_) {
      planned_ = wanted;
      can_read_ = plan_.make(*head.layout, *head.key, *head.value, levels);
    }
    return can_read_;
  }

  void prepare(const EncodedHead&, int, const FeatureQueries& queries) override {
    simd::round_queries(plan_, queries, queries_);
  }
  void see(const PageRun& run, const AttentionState& state) override {
    simd::see_codes(plan_, run, queries_, state, scratch_);
  }
  int stretch() const override { return batch_pages(plan_.page_tokens); }

 private:
  // What plan_ was made from: the splits of a head ask for the same one again and again.
  struct Planned {
    uint64_t layout_id = 0;
    uint32_t key_plane = 0, value_plane = 0;
    int levels = 0;
    bool operator==(const Planned&) const = default;
  };

  Planned planned_;
  bool can_read_ = false;
  CodePlan plan_;
  simd::CodeQueries queries_;
  simd::CodeScratch scratch_;
};

}  // namespace lowkey::kernels
