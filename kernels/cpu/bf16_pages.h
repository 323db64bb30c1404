// Exact bf16 pages, attended in pairs of bf16 (bf16_attention.h) as they lie in memory.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/cpu/bf16_attention.h"
#include "kernels/cpu/encoded_pages.h"

namespace lowkey::kernels {

class Bf16Pages final : public EncodedPages {
 public:
  // Whether both vectors lie in pairs, with all of them in the first `levels` levels. On a machine without
  // has_bf16_pairs() the caller must not ask.
  static bool can_read(const EncodedHead& head, int levels);

  void prepare(const EncodedHead& head, int levels, const FeatureQueries& queries) override;
  void see(const PageRun& run, const AttentionState& state) override;
  int stretch() const override { return batch_pages(head_.layout->page_tokens); }

 private:
  Bf16Tile tile(std::byte* const* slabs) const;
  // Which tokens of pages [page, end) the rows [first, last) see.
  void find_ranges(const PageRun& run, int page, int end, int first, int last);

  EncodedHead head_;
  FeatureQueries queries_;
  const uint16_t* rounded_ = nullptr;  // [count][rounded_stride_]
  int rounded_stride_ = 0;
  std::vector<uint16_t> own_rounded_;
  std::vector<int> begin_, end_;
  Bf16Scratch scratch_;
};

}  // namespace lowkey::kernels
