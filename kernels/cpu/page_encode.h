// Pages written in Highway: encode_vector() as fast as prefill needs it.
//
// The page's rows are turned into columns ([feature][token], minus the mean), multiplied by the basis as one
// small product, and coded group by group in the order of the planes, so that packing is shifts of whole
// registers. Each feature's sum starts at 0 and runs over the inputs in ascending order with fused
// multiply-adds, as in the reference: what is written depends on the page's rows alone, not on threads, batch
// or chunks, and is the reference's to the bit wherever the instruction set has fused multiply-adds
// (elsewhere features may differ by rounding).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/encode_kernels.h"
#include "kernels/page/page_codec.h"
#include "kernels/page/plane_codes.h"

namespace lowkey::kernels::simd {

// Of one thread: keeps its scratch between calls.
class PageEncoder {
 public:
  // encode_vector().
  void encode(const PageLayout& layout, const VectorLayout& vector,
              std::span<const std::byte* const> head_rows, PageView page);

 private:
  struct Job {
    const PageLayout& layout;
    const VectorLayout& vector;
    PageView page;
    const float* columns = nullptr;  // [dim][page_tokens], in units of the static scales
    const float* rows = nullptr;     // [page_tokens][row_stride]; where a side or an axis needs it
    int row_stride = 0;
  };
  void make_features(std::span<const std::byte* const> head_rows, Job& job);
  void make_norms(const Job& job);
  void make_pairs(const Job& job);
  void code_group(const Job& job, const PlaneGroup& group);
  GroupValues values_of(const Job& job, const PlaneGroup& group) const;

  std::vector<float> inputs_, features_, rows_;
  std::vector<float> norms_;           // of every token; 1 without norms
  std::vector<float> minima_, steps_;  // as the pairs are ordered
  std::vector<uint32_t> codes_;
  std::vector<PlaneGroup> groups_;  // of the vector at hand
};

}  // namespace lowkey::kernels::simd
