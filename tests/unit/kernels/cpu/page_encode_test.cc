// The fast encoder against the reference codec, byte by byte, on every instruction set.
#include "kernels/cpu/page_encode.h"

#include "base/hash128.h"
#include "tests/unit/kernels/page/page_test_support.h"
#include "tests/unit/kernels/support.h"

namespace lowkey::kernels {
namespace {

using test::HeadRows;
using test::NamedSpec;
using test::Rows;
using test::Slabs;

void encode_fast(const PageLayout& layout, const HeadRows& rows, PageView page) {
  simd::PageEncoder encoder;
  for (const VectorLayout& vector : layout.vectors) encoder.encode(layout, vector, rows.of(vector), page);
}

// test::all_specs(), and affine blocks of whole pages and vectors.
std::vector<NamedSpec> specs_of(DType dtype) {
  auto specs = test::all_specs(dtype);
  for (ScaleAxis axis : {ScaleAxis::kChannel, ScaleAxis::kToken}) {
    for (int span : {16, 32}) {
      PageSpec spec{.recipe = "blocks"};
      spec.key = test::affine(test::Widths(4, {4, 0, 0}), axis, span);
      spec.value = test::affine(test::Widths(4, {2, 0, 0}), axis, span);
      specs.push_back({"affine_blocks_" + std::to_string(span), spec, {1, 2, 64, dtype}});
    }
  }
  return specs;
}

class EncodeOnInstructionSets : public testing::TestWithParam<test::BackendCase> {};

TEST_P(EncodeOnInstructionSets, EqualsTheReference) {
  const test::SimdTarget target(GetParam().simd_target);
  // Products without fused multiply-adds round otherwise.
  const bool fused = (GetParam().simd_target & (HWY_EMU128 | HWY_SSE4)) == 0;
  for (DType dtype : {GetParam().dtype, DType::kF16}) {
    if (dtype == DType::kF16 && GetParam().dtype == DType::kF32) continue;  // once is enough
    for (NamedSpec& named : specs_of(dtype)) {
      for (int page_tokens : {16, 48}) {
        if (named.spec.key.scale_span > page_tokens || named.spec.value.scale_span > page_tokens) continue;
        named.spec.page_tokens = page_tokens;
        const PageLayout layout = PageLayout::make(named.spec, named.shape).value();
        if (!fused && !named.spec.key.encode.empty()) continue;
        for (Rows kind : {Rows::kNormal, Rows::kOutlier, Rows::kZero, Rows::kDenormal}) {
          const HeadRows rows(layout, kind);
          Slabs expected(layout), actual(layout);
          encode_page(layout, rows, expected.view());
          encode_fast(layout, rows, actual.view());
          for (int slab = 0; slab < kMaxSlabs; ++slab)
            ASSERT_EQ(actual.memory[slab], expected.memory[slab])
                << named.name << " of " << page_tokens << " tokens, rows " << static_cast<int>(kind);
        }
      }
    }
  }
}

// Without fused multiply-adds a feature differs by rounding, so few codes do.
TEST_P(EncodeOnInstructionSets, BasesAgreeToRounding) {
  const test::SimdTarget target(GetParam().simd_target);
  for (const NamedSpec& named : specs_of(GetParam().dtype)) {
    if (named.spec.key.encode.empty()) continue;
    const PageLayout layout = PageLayout::make(named.spec, named.shape).value();
    const HeadRows rows(layout, Rows::kNormal);
    Slabs expected(layout), actual(layout);
    encode_page(layout, rows, expected.view());
    encode_fast(layout, rows, actual.view());
    if (named.spec.key.quantizer == Quantizer::kFull) {
      for (const VectorLayout& v : layout.vectors) {
        std::vector<float> a(static_cast<size_t>(layout.page_tokens) * v.dim), b = a;
        decode_features(layout, v, expected.view(), 1, a.data());
        decode_features(layout, v, actual.view(), 1, b.data());
        test::expect_close(b, a, 1e-2, 1e-5, named.name);  // one step of bf16
      }
      continue;
    }
    size_t differ = 0, all = 0;
    for (int slab = 0; slab < layout.num_levels; ++slab) {
      all += expected.memory[slab].size();
      for (size_t i = 0; i < expected.memory[slab].size(); ++i)
        differ += expected.memory[slab][i] != actual.memory[slab][i];
    }
    EXPECT_LE(differ, all / 100) << named.name;
  }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, EncodeOnInstructionSets, testing::ValuesIn(test::simd_backends()),
                         [](const auto& info) { return info.param.name; });

// One encoder serves vectors of all shapes in any order.
TEST(PageEncoder, KeepsNothingBetweenPages) {
  simd::PageEncoder encoder;
  for (int round = 0; round < 2; ++round) {
    for (const NamedSpec& named : specs_of(DType::kBf16)) {
      const PageLayout layout = PageLayout::make(named.spec, named.shape).value();
      const HeadRows rows(layout, Rows::kOutlier);
      Slabs fresh(layout), used(layout);
      encode_fast(layout, rows, fresh.view());
      for (const VectorLayout& v : layout.vectors) encoder.encode(layout, v, rows.of(v), used.view());
      for (int slab = 0; slab < kMaxSlabs; ++slab)
        ASSERT_EQ(used.memory[slab], fresh.memory[slab]) << named.name;
    }
  }
}

// NaN and infinities code as in the reference, and nothing is written elsewhere.
TEST(PageEncoder, NonFiniteInputsEqualTheReference) {
  for (const NamedSpec& named : specs_of(DType::kF32)) {
    const PageLayout layout = PageLayout::make(named.spec, named.shape).value();
    for (float bad : {NAN, INFINITY, -INFINITY, 3e38f}) {
      auto values = test::make_rows(Rows::kNormal, layout.page_tokens, layout.head_dim);
      for (size_t i = 0; i < values.size(); i += 11) values[i] = bad;
      const auto bytes = test::to_dtype(values, layout.dtype);
      const std::byte* heads[] = {bytes.data(), bytes.data()};
      Slabs expected(layout), actual(layout);
      simd::PageEncoder encoder;
      for (const VectorLayout& v : layout.vectors) {
        if (v.quantizer == Quantizer::kFull && v.encode != kNoNumbers) continue;  // which NaN is open
        encode_vector(layout, v, std::span(heads).first(v.num_heads), expected.view());
        encoder.encode(layout, v, std::span(heads).first(v.num_heads), actual.view());
      }
      for (int slab = 0; slab < kMaxSlabs; ++slab)
        ASSERT_EQ(actual.memory[slab], expected.memory[slab]) << named.name << " with " << bad;
    }
  }
}

// Pages in stores and on disks outlive a release: the bytes of exact and q8 never change.
TEST(PageEncoder, BytesOfExactAndQ8AreFixed) {
  const auto hash_of = [](const PageSpec& spec, DType dtype) {
    const PageLayout layout = PageLayout::make(spec, {2, 2, 64, dtype}).value();
    uint32_t state = 1;
    std::vector<float> values(32 * 64);
    Slabs slabs(layout, std::byte{0});
    simd::PageEncoder encoder;
    for (const VectorLayout& v : layout.vectors) {
      for (float& x : values) {
        state = state * 1664525 + 1013904223;
        x = static_cast<float>(static_cast<int32_t>(state) >> 8) * 0x1p-20f;
      }
      const auto bytes = test::to_dtype(values, dtype);
      const std::byte* heads[] = {bytes.data()};
      encoder.encode(layout, v, heads, slabs.view());
    }
    return hash128(std::span<const std::byte>(slabs.memory[0])).hex();
  };
  EXPECT_EQ(hash_of({}, DType::kF32), "3639d2a3bb670e01ac458b387c9e9f1f");
  EXPECT_EQ(hash_of({}, DType::kBf16), "a1135ccda3dd9cbb488fe324252d88cf");
  EXPECT_EQ(hash_of(PageSpec::embedded("q8", 8, 4), DType::kF32), "1726d7014fe09a0a8d810463d5e6ffc8");
  EXPECT_EQ(hash_of(PageSpec::embedded("q8", 8, 4), DType::kBf16), "e305cab9c04a13db7663ddaf00f89c2a");
}

}  // namespace
}  // namespace lowkey::kernels
