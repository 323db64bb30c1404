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
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(t.value3[i], mean(2 * i, 2 * i + 1), 2e-6) << i;
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(t.value2[i], mean(4 * i, 4 * i + 3), 2e-6) << i;
  for (int i = 0; i < 2; ++i) EXPECT_NEAR(t.value1[i], mean(8 * i, 8 * i + 7), 2e-6) << i;
}

// The exact mean square error under the normal density, cell by cell in float64: over [a, b] with value v,
// (1 + v^2) P - (b phi(b) - a phi(a)) - 2 v (phi(a) - phi(b)).
TEST(EmbeddedQuantizer, SignalToNoiseOnAGaussian) {
  const EmbeddedTables& t = embedded_tables();
  const double expected[] = {0, 4.396, 9.198, 14.578, 20.222, 24.118, 30.420, 36.510, 42.512};
  for (int bits = 1; bits <= 8; ++bits) {
    double noise = 0;
    const int cells = 1 << bits;
    const auto edge = [&](int i) {  // beyond the outer ones there is next to nothing, but clipped
      if (i == 0 || i == cells) return i == 0 ? -12.0 : 12.0;
      const int steps = i << (8 - bits);
      return double{t.edge[steps / 16]} + double{t.step[steps / 16]} * (steps % 16);
    };
    for (int code = 0; code < cells; ++code) {
      const double a = edge(code), b = edge(code + 1), v = embedded_value(static_cast<uint8_t>(code), bits);
      noise += (1 + v * v) * (normal_below(b) - normal_below(a)) -
               (b * normal_density(b) - a * normal_density(a)) -
               2 * v * (normal_density(a) - normal_density(b));
    }
    EXPECT_NEAR(-10 * std::log10(noise), expected[bits], 0.002) << bits;
  }
}

// The cells of every width are intervals in order, and each value lies in its cell.
TEST(EmbeddedQuantizer, CodesAreMonotoneAndValuesLieInTheirCells) {
  for (int bits = 1; bits <= 8; ++bits) {
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
