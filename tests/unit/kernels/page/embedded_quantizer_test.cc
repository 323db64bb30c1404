#include "kernels/page/embedded_quantizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/page/dtype.h"

namespace lowkey::kernels {
namespace {

double normal_density(double x) {
  return std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
}
double normal_below(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0));
}

TEST(EmbeddedQuantizer, CellsAreLloydsFixedPoint) {
  const EmbeddedTables& t = embedded_tables();
  EXPECT_FLOAT_EQ(t.edge[0], -kEmbeddedEdge);
  EXPECT_FLOAT_EQ(t.edge[16], kEmbeddedEdge);
  for (int i = 1; i < 16; ++i) EXPECT_NEAR(t.edge[i], (t.value4[i - 1] + t.value4[i]) / 2, 1e-6) << i;
  auto mean = [&](int first, int last) {  // E[x | cells first..last], the outer ones unbounded
    const double a = first == 0 ? -INFINITY : t.edge[first], b = last == 15 ? INFINITY : t.edge[last + 1];
    return (normal_density(a) - normal_density(b)) / (normal_below(b) - normal_below(a));
  };
  for (int i = 0; i < 16; ++i) EXPECT_NEAR(t.value4[i], mean(i, i), 2e-6) << i;
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(t.value2[i], mean(4 * i, 4 * i + 3), 2e-6) << i;
}

TEST(EmbeddedQuantizer, SignalToNoiseOnAGaussian) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  double signal = 0, noise[9] = {};
  for (int i = 0; i < 1'000'000; ++i) {
    const float x = normal(random);
    const uint8_t code = embedded_code(x);
    signal += double{x} * x;
    for (int bits : {2, 4, 8}) {
      const double error = x - embedded_value(code >> (8 - bits), bits);
      noise[bits] += error * error;
    }
  }
  EXPECT_NEAR(10 * std::log10(signal / noise[2]), 9.2, 0.1);
  EXPECT_NEAR(10 * std::log10(signal / noise[4]), 20.2, 0.1);
  EXPECT_NEAR(10 * std::log10(signal / noise[8]), 42.5, 0.2);
}

// The cells of every width are intervals in order, and each value lies in its cell.
TEST(EmbeddedQuantizer, CodesAreMonotoneAndValuesLieInTheirCells) {
  for (int bits : {2, 4, 8}) {
    int last = 0;
    for (int i = -46000; i <= 46000; ++i) {
      const int code = embedded_code(static_cast<float>(i) * 1e-4f) >> (8 - bits);
      ASSERT_GE(code, last) << bits << " " << i;
      ASSERT_LE(code, last + 1);
      last = code;
    }
    EXPECT_EQ(last, (1 << bits) - 1);
    for (int code = 0; code < 1 << bits; ++code) {
      EXPECT_EQ(embedded_code(embedded_value(static_cast<uint8_t>(code), bits)) >> (8 - bits), code) << bits;
    }
  }
}

TEST(EmbeddedQuantizer, EightBitErrorIsAtMostHalfAStep) {
  const EmbeddedTables& t = embedded_tables();
  for (int i = -45000; i <= 45000; ++i) {
    const float u = static_cast<float>(i) * 1e-4f;
    const uint8_t code = embedded_code(u);
    EXPECT_LE(std::fabs(embedded_value(code, 8) - u), t.step[code >> 4] * 0.5f + 1e-6f) << u;
  }
}

TEST(EmbeddedQuantizer, ClipsBeyondTheEdgeAndSurvivesNonFiniteInput) {
  EXPECT_EQ(embedded_code(100.0f), 255);
  EXPECT_EQ(embedded_code(-100.0f), 0);
  EXPECT_EQ(embedded_code(INFINITY), 255);
  EXPECT_EQ(embedded_code(-INFINITY), 0);
  EXPECT_EQ(embedded_code(NAN), 0);
}

TEST(EmbeddedQuantizer, RowScalarNeverClipsAndIsTheSmallestThatDoesNot) {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  for (int dim : {4, 8, 20, 64, 128}) {
    for (float outlier : {0.0f, 3.0f, 50.0f, 1e6f}) {
      std::vector<float> row(dim);
      for (float& x : row) x = normal(random);
      row[dim / 2] += outlier;
      const uint16_t bits = embedded_row_scalar(row);
      double sum = 0;
      float largest = 0;
      for (float x : row) sum += double{x} * x, largest = std::max(largest, std::fabs(x));
      const double needed = std::max(std::sqrt(sum / dim), largest / 4.5);
      EXPECT_GE(bf16_to_f32(bits), needed * (1 - 1e-6));
      EXPECT_LT(bf16_to_f32(static_cast<uint16_t>(bits - 1)), needed * (1 + 1e-6))
          << "rounded up by one step";
    }
  }
  EXPECT_EQ(embedded_row_scalar(std::vector<float>(16, 0.0f)), 0);
}

TEST(DTypes, SixteenBitRoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto b = static_cast<uint16_t>(bits);
    if (!std::isnan(bf16_to_f32(b))) {
      ASSERT_EQ(f32_to_bf16(bf16_to_f32(b)), b);
    }
    if (!std::isnan(f16_to_f32(b))) {
      ASSERT_EQ(f32_to_f16(f16_to_f32(b)), b);
    }
  }
  EXPECT_EQ(f32_to_bf16(1.00390625f), 0x3f80);  // a tie goes to the even neighbour below
  EXPECT_EQ(f32_to_bf16(1.01171875f), 0x3f82);  // and above
  EXPECT_EQ(f32_to_bf16_up(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16_up(1.0000001f), 0x3f81);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(1e-9f), 0);
  EXPECT_FLOAT_EQ(f16_to_f32(0x3555), 0.33325195f);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(NAN))));
}

}  // namespace
}  // namespace lowkey::kernels
