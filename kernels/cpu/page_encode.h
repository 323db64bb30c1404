// Pages written in Highway: encode_vector() as fast as prefill needs it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/page/page_codec.h"

namespace lowkey::kernels::simd {

// Of one thread: keeps its scratch between calls.
class PageEncoder {
 public:
  // encode_vector() with the same bytes as a result.
  void encode(const PageLayout& layout, const VectorLayout& vector,
              std::span<const std::byte* const> head_rows, PageView page);

 private:
  std::vector<float> row_;
  std::vector<uint8_t> codes_;
};

}  // namespace lowkey::kernels::simd
