// Products of weights in 8 and 4 bits against the formula in float64: x rounded in blocks of 32, integer
// products, scales; on every instruction set, for sizes that do and do not fill blocks, panels and tiles.
#include <algorithm>
#include <cstring>

#include "kernels/ops/few_bit_weights.h"
#include "kernels/page/dtype.h"
#include "tests/unit/kernels/support.h"

namespace lowkey::kernels {
namespace {

using test::expect_close;
using test::GuardedTensor;
using test::normal_values;

constexpr FewBitForm kForms[] = {{8}, {4}, {4, true}};

std::string name_of(FewBitForm form) {
  return std::to_string(form.bits) + (form.offsets ? " bits with offsets" : " bits");
}

// Offsets are random.
FewBitMatrix rounded(FewBitForm form, int out, int in, const std::vector<float>& weights) {
  FewBitMatrix matrix(form.bits, out, in);
  for (int row = 0; row < out; ++row) matrix.round_row(row, weights.data(), DType::kF32, int64_t{row} * in);
  if (!form.offsets) return matrix;
  FewBitMatrix result(form, out, in);
  const auto offsets = normal_values(static_cast<size_t>(out) * matrix.blocks(), 77);
  for (int row = 0; row < out; ++row) {
    for (int block = 0; block < matrix.blocks(); ++block)
      result.set_block(row, block,
                       {matrix.scale(row, block).scale, f32_to_f16(offsets[row * matrix.blocks() + block])},
                       matrix.codes(row, block));
  }
  return result;
}

// A row of x as the kernel rounds it, from the formula.
struct RoundedRow {
  std::vector<double> scales;
  std::vector<int> codes;
};
RoundedRow round(const float* x, int in) {
  RoundedRow row;
  for (int begin = 0; begin < in; begin += kWeightBlock) {
    float most = 0;
    const int end = std::min(in, begin + kWeightBlock);
    for (int i = begin; i < end; ++i) most = std::max(most, std::abs(x[i]));
    row.scales.push_back(most / 127);
    for (int i = begin; i < end; ++i)
      row.codes.push_back(most > 0 ? static_cast<int>(std::nearbyintf(x[i] * (127 / most))) : 0);
  }
  return row;
}

class FewBitProducts : public testing::TestWithParam<test::BackendCase> {
 protected:
  test::SimdTarget target{GetParam().simd_target};
  std::unique_ptr<Backend> backend = GetParam().make();
};

TEST_P(FewBitProducts, EqualTheFormula) {
  struct Shape {
    int rows, in, out;
  };
  uint32_t seed = 1;
  for (const Shape s :
       {Shape{1, 64, 64}, Shape{1, 2048, 40}, Shape{2, 8, 24}, Shape{3, 43, 64}, Shape{5, 576, 192},
        Shape{7, 172, 20}, Shape{13, 96, 33}, Shape{100, 160, 50}, Shape{1, 1, 1}}) {
    for (const FewBitForm form : kForms) {
      const bool bias = seed & 1, accumulate = seed & 2;
      auto x = normal_values(static_cast<size_t>(s.rows) * s.in, seed++);
      std::fill_n(x.begin(), std::min(s.in, 32), 0.0f);  // a block of nothing
      const auto b = normal_values(s.out, seed++);
      const auto before = normal_values(static_cast<size_t>(s.rows) * s.out, seed++);
      const FewBitMatrix weight =
          rounded(form, s.out, s.in, normal_values(static_cast<size_t>(s.out) * s.in, seed++));
      std::vector<float> expected(before.size());
      for (int r = 0; r < s.rows; ++r) {
        const RoundedRow row = round(x.data() + static_cast<size_t>(r) * s.in, s.in);
        for (int o = 0; o < s.out; ++o) {
          double sum = (bias ? b[o] : 0) + (accumulate ? before[static_cast<size_t>(r) * s.out + o] : 0);
          for (int i = 0; i < s.in; ++i) {
            const int block = i / kWeightBlock;
            const auto [scale, offset] = weight.scale(o, block);
            sum +=
                (double{f16_to_f32(scale)} * weight.codes(o, block)[i % kWeightBlock] + f16_to_f32(offset)) *
                row.scales[block] * row.codes[i];
          }
          expected[static_cast<size_t>(r) * s.out + o] = static_cast<float>(sum);
        }
      }
      const auto packed = backend->pack_few_bits(weight);
      GuardedTensor in(*backend, s.rows, s.in, x), out(*backend, s.rows, s.out, before);
      backend->linear(*packed, in, bias ? b.data() : nullptr, accumulate, out);
      expect_close(out.values(), expected, test::kSumTolerance, test::kSumTolerance * (s.in + 10),
                   testing::PrintToString(std::array{s.rows, s.in, s.out}) + name_of(form));
    }
  }
}

TEST_P(FewBitProducts, RowsDoNotDependOnTheNumberOfRows) {
  constexpr int kRows = 210, kIn = 352, kOut = 600;
  for (const FewBitForm form : kForms) {
    const auto x = normal_values(size_t{kRows} * kIn, 7);
    const auto packed =
        backend->pack_few_bits(rounded(form, kOut, kIn, normal_values(size_t{kOut} * kIn, 8)));
    const auto run = [&](int first, int rows) {
      GuardedTensor in(*backend, rows, kIn,
                       std::vector<float>(x.begin() + first * kIn, x.begin() + (first + rows) * kIn));
      GuardedTensor out(*backend, rows, kOut);
      backend->linear(*packed, in, nullptr, false, out);
      return out.values();
    };
    const auto whole = run(0, kRows);
    for (const int rows : {1, 2, 3, 4, 5, 6, 7, 11, 16, 95, 97, 128}) {
      const auto part = run(kRows - rows, rows);
      ASSERT_EQ(std::memcmp(part.data(), whole.data() + size_t(kRows - rows) * kOut, part.size() * 4), 0)
          << name_of(form) << ", " << rows << " rows";
    }
  }
}

TEST_P(FewBitProducts, EmbedGivesTheRows) {
  constexpr int kRows = 70, kCols = 96;
  for (const FewBitForm form : kForms) {
    const FewBitMatrix weight = rounded(form, kRows, kCols, normal_values(size_t{kRows} * kCols, 3));
    const auto packed = backend->pack_few_bits(weight);
    const std::vector<int32_t> ids = {0, 5, 69, 17, 70};
    GuardedTensor out(*backend, 5, kCols);
    backend->embed(*packed, ids, 0, 1.0f, out);
    const auto values = out.values();
    std::vector<float> row(kCols);
    for (int i = 0; i < 5; ++i) {
      std::fill(row.begin(), row.end(), 0.0f);
      if (ids[i] < kRows) weight.copy_row(ids[i], row.data());
      EXPECT_EQ(std::memcmp(row.data(), values.data() + i * kCols, kCols * 4), 0)
          << name_of(form) << ", row " << ids[i];
    }
  }
}

// 16 outputs x 64 inputs: codes and 32 halves, or 64.
TEST_P(FewBitProducts, TakeTheBytesOfTheirBits) {
  const auto values = normal_values(256 * 512, 1);
  EXPECT_EQ(backend->pack_few_bits(rounded({8}, 256, 512, values))->packed_bytes(), 256u * 512 * 17 / 16);
  EXPECT_EQ(backend->pack_few_bits(rounded({4}, 256, 512, values))->packed_bytes(), 256u * 512 * 9 / 16);
  EXPECT_EQ(backend->pack_few_bits(rounded({4, true}, 256, 512, values))->packed_bytes(),
            256u * 512 * 10 / 16);
}

INSTANTIATE_TEST_SUITE_P(Backends, FewBitProducts, testing::ValuesIn(test::backends()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(InstructionSets, FewBitProducts, testing::ValuesIn(test::simd_backends()),
                         [](const auto& info) { return info.param.name; });

// Of a normal distribution, as known from rounding it: the largest of 32 is about 2.4 sigma, a step 1/127 or
// 1/8 of it, an error step / sqrt(12).
TEST(FewBitMatrices, RoundingErrorIsWhatTheStepMakesIt) {
  const auto values = normal_values(64 * 512, 5, 0.03f);
  RoundingError eight, four;
  FewBitMatrix a(8, 64, 512), b(4, 64, 512);
  for (int row = 0; row < 64; ++row) {
    eight += a.round_row(row, values.data(), DType::kF32, row * 512);
    four += b.round_row(row, values.data(), DType::kF32, row * 512);
  }
  EXPECT_NEAR(eight.relative_rms(), 0.0054, 0.0003);
  EXPECT_NEAR(four.relative_rms(), 0.0865, 0.004);
  // The same from the values that are read back.
  double error = 0, total = 0;
  std::vector<float> row(512);
  for (int o = 0; o < 64; ++o) {
    b.copy_row(o, row.data());
    for (int i = 0; i < 512; ++i) {
      error += std::pow(double{row[i]} - values[o * 512 + i], 2);
      total += std::pow(double{values[o * 512 + i]}, 2);
    }
  }
  EXPECT_NEAR(std::sqrt(error / total), four.relative_rms(), 1e-5);
}

TEST(FewBitMatrices, BackendsWithoutFewBitsExpandThem) {
  const auto reference = make_reference_backend(DType::kF32);
  EXPECT_FALSE(reference->keeps_few_bits());
  const FewBitMatrix weight = rounded({4, true}, 3, 40, normal_values(120, 9));
  const auto packed = reference->pack_few_bits(weight);
  std::vector<float> row(40);
  weight.copy_row(1, row.data());
  GuardedTensor out(*reference, 1, 40);
  const std::vector<int32_t> ids = {1};
  reference->embed(*packed, ids, 0, 1.0f, out);
  EXPECT_EQ(out.values(), row);
}

}  // namespace
}  // namespace lowkey::kernels
