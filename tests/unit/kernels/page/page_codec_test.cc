#include "kernels/page/page_codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/page/embedded_quantizer.h"
#include "tests/unit/kernels/page/page_test_support.h"

namespace lowkey::kernels {
namespace {

using test::make_rows;
using test::Rows;
using test::Slabs;
using test::to_dtype;

// One head.
void encode_rows(const PageLayout& layout, const VectorLayout& vector, const std::vector<std::byte>& rows,
                 PageView page) {
  const std::byte* heads[] = {rows.data()};
  encode_vector(layout, vector, heads, page);
}

PageSpec embedded_spec(int bits, int page_tokens) {
  PageSpec spec = PageSpec::embedded("test", bits, 0);
  spec.page_tokens = page_tokens;
  return spec;
}

// Element (token 5, feature 22) of each format is where the format's text says: K [feature / n][token][n],
// V [token / n][feature][n] inside its group of 16 features.
TEST(PageCodec, InnerOrderIsTheWrittenOne) {
  const int tokens = 16, dim = 32;
  std::vector<float> rows(tokens * dim, 0.0f);
  const int token = 5, feature = 22;  // group 1, feature 6 of it
  rows[token * dim + feature] = 1.0f;
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    const PageLayout layout = PageLayout::make({.page_tokens = tokens}, {1, 1, dim, dtype}).value();
    const size_t n = dtype == DType::kF32 ? 1 : 2, size = 4 / n, group = tokens * 16 * size;
    for (const VectorLayout& v : layout.vectors) {
      Slabs slabs(layout);
      encode_rows(layout, v, to_dtype(rows, dtype), slabs.view());
      const std::byte* plane = slabs.pointers[0] + v.scalars_offset + group;
      const size_t index =
          v.side == Side::kKey ? (6 / n * tokens + token) * n + 6 % n : (token / n * 16 + 6) * n + token % n;
      EXPECT_EQ(load_element(plane, dtype, index), 1.0f);
    }
  }
}

// Coding at 2 or 4 bits gives the same bytes' worth of code as cutting the 8-bit code.
TEST(PageCodec, NarrowerCodesAreTheTopOfWiderOnes) {
  const int tokens = 16, dim = 32;
  const auto bytes = to_dtype(make_rows(Rows::kNormal, tokens, dim), DType::kBf16);
  auto layout_of = [&](int bits) {
    return PageLayout::make(embedded_spec(bits, tokens), {1, 1, dim, DType::kBf16}).value();
  };
  for (int bits : {2, 4}) {
    const PageLayout narrow = layout_of(bits);
    for (const VectorLayout& v : narrow.vectors) {
      Slabs slabs(narrow);
      encode_rows(narrow, v, bytes, slabs.view());
      std::vector<float> decoded(tokens * dim);
      decode_vector(narrow, v, slabs.view(), 1, decoded.data());
      for (int i = 0; i < tokens * dim; ++i) {
        const float scalar = slabs.norm(v, static_cast<int>(i) / dim);
        const uint8_t code8 = embedded_code(load_element(bytes.data(), DType::kBf16, i) / scalar);
        ASSERT_EQ(decoded[i], embedded_value(code8 >> (8 - bits), bits) * scalar) << i;
      }
    }
  }
}

// Two levels (4 bits, then 4 more) decode to 4 bits from the first and 8 from both.
TEST(PageCodec, LevelsRefine) {
  const int tokens = 16, dim = 16;
  PageSpec spec = embedded_spec(4, tokens);
  spec.num_levels = 2;
  spec.key.bits = spec.value.bits = {{4, 4, 0}};
  const PageLayout layout = PageLayout::make(spec, {1, 1, dim, DType::kF32}).value();
  const auto rows = make_rows(Rows::kNormal, tokens, dim);
  for (const VectorLayout& v : layout.vectors) {
    Slabs slabs(layout);
    encode_rows(layout, v, to_dtype(rows, DType::kF32), slabs.view());
    std::vector<float> coarse(rows.size()), fine(rows.size());
    decode_vector(layout, v, slabs.view(), 1, coarse.data());
    decode_vector(layout, v, slabs.view(), 2, fine.data());
    for (size_t i = 0; i < rows.size(); ++i) {
      const float scalar = slabs.norm(v, static_cast<int>(i) / dim);
      const uint8_t code = embedded_code(rows[i] / scalar);
      ASSERT_EQ(coarse[i], embedded_value(code >> 4, 4) * scalar);
      ASSERT_EQ(fine[i], embedded_value(code, 8) * scalar);
    }
  }
}

TEST(PageCodec, SinkHoldsTheFirstRowsExactly) {
  const PageLayout layout = PageLayout::make(PageSpec::embedded("q8", 8, 4), {2, 2, 8, DType::kBf16}).value();
  Slabs slabs(layout);
  const auto bytes = to_dtype(make_rows(Rows::kNormal, layout.page_tokens, 8), DType::kBf16);
  const RowsLayout& v = layout.rows_of(1, Side::kValue, 0);
  write_sink(layout, v, bytes.data(), slabs.pointers[layout.sink_slab()]);
  EXPECT_EQ(std::memcmp(slabs.pointers[1] + v.sink_offset, bytes.data(), 4 * 8 * 2), 0);
  EXPECT_EQ(slabs.pointers[1][v.sink_offset - 1], std::byte{0xa5});
  EXPECT_EQ(slabs.pointers[1][v.sink_offset + 64], std::byte{0xa5});
}

}  // namespace
}  // namespace lowkey::kernels
