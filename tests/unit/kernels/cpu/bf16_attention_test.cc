// Attention in pairs of bf16: tiles against their definition, rows against float64, and bit against bit
// whatever rows come together.
#include "kernels/cpu/bf16_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/page/dtype.h"
#include "tests/unit/kernels/support.h"

namespace lowkey::kernels {
namespace {

using test::normal_values;

std::vector<uint16_t> rounded(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (const float x : values) bits.push_back(f32_to_bf16(x));
  return bits;
}

class Bf16Pairs : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_bf16_pairs()) GTEST_SKIP() << "no products of bf16 pairs on this machine";
  }
};
using Bf16Tiles = Bf16Pairs;
using Bf16Attention = Bf16Pairs;

TEST_F(Bf16Tiles, HaveEveryElementAtItsPlace) {
  for (const int dim : {16, 48, 64, 80, 256}) {
    for (const auto& [tokens, extent] : {std::pair(1, 16), {16, 16}, {7, 32}, {32, 32}, {33, 48}, {64, 64}}) {
      std::vector<uint16_t> rows(size_t(tokens) * dim);
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint16_t>(i * 7919 + 1);
      const size_t elements = size_t(extent) * dim;
      std::vector<uint16_t> keys(elements + 1, 0x5a5a), values(keys);
      make_key_pairs(rows.data(), tokens, extent, dim, keys.data());
      make_value_pairs(rows.data(), tokens, extent, dim, values.data());
      for (int t = 0; t < extent; ++t) {
        for (int f = 0; f < dim; ++f) {
          const uint16_t expected = t < tokens ? rows[size_t(t) * dim + f] : 0;
          ASSERT_EQ(keys[(size_t(f / 2) * extent + t) * 2 + f % 2], expected) << dim << " " << t << " " << f;
          const size_t pair = size_t(f / 16) * (extent / 2) + t / 2;
          ASSERT_EQ(values[(pair * 16 + f % 16) * 2 + t % 2], expected) << dim << " " << t << " " << f;
        }
      }
      EXPECT_EQ(keys.back(), 0x5a5a);
      EXPECT_EQ(values.back(), 0x5a5a);
    }
  }
}

// Rows with ranges of their own over some tiles of random keys and values.
struct Case {
  Case(int dim, int tokens, int num_tiles, int rows, uint32_t seed)
      : dim(dim),
        tokens(tokens),
        rows(rows),
        queries(normal_values(size_t(rows) * dim, seed, 2.4f / std::sqrt(float(dim)))) {
    const int all = tokens * num_tiles;
    keys = normal_values(size_t(all) * dim, seed + 1);
    values = normal_values(size_t(all) * dim, seed + 2);
    for (std::vector<float>* side : {&keys, &values})
      for (float& x : *side) x = bf16_to_f32(f32_to_bf16(x));
    for (int tile = 0; tile < num_tiles; ++tile) {
      const auto part = [&](const std::vector<float>& from) {
        return rounded({from.begin() + ptrdiff_t(tile) * tokens * dim,
                        from.begin() + ptrdiff_t(tile + 1) * tokens * dim});
      };
      memory.emplace_back(size_t(tokens) * dim);
      make_key_pairs(part(keys).data(), tokens, tokens, dim, memory.back().data());
      memory.emplace_back(size_t(tokens) * dim);
      make_value_pairs(part(values).data(), tokens, tokens, dim, memory.back().data());
    }
    for (int tile = 0; tile < num_tiles; ++tile)
      tiles.push_back({memory[2 * tile].data(), memory[2 * tile + 1].data()});
    rounded_queries = rounded(queries);
    for (int row = 0; row < rows; ++row) {
      begin.push_back(row % 3 == 0 ? 0 : (row * 5) % (all / 2));
      end.push_back(row % 7 == 3 ? begin.back() : std::min(all, begin.back() + 1 + row * 11));
    }
  }

  int dim, tokens, rows;
  std::vector<float> queries, keys, values;
  std::vector<uint16_t> rounded_queries;
  std::vector<std::vector<uint16_t>> memory;
  std::vector<Bf16Tile> tiles;
  std::vector<int> begin, end;
};

struct Outcome {
  std::vector<float> maximum, sum, acc;
};

// Rows [first, first + count), seeing the batch twice: the second time they have a maximum.
Outcome attend(const Case& c, int first, int count, float soft_cap = 0) {
  Outcome o{std::vector<float>(count, -std::numeric_limits<float>::infinity()), std::vector<float>(count),
            std::vector<float>(size_t(count) * c.dim)};
  Bf16Scratch scratch;
  for (int time = 0; time < 2; ++time) {
    attend_pairs({.tiles = c.tiles.data(),
                  .num_tiles = static_cast<int>(c.tiles.size()),
                  .tokens = c.tokens,
                  .key_dim = c.dim,
                  .value_dim = c.dim,
                  .queries = c.rounded_queries.data() + size_t(first) * c.dim,
                  .query_stride = c.dim,
                  .rows = count,
                  .begin = c.begin.data() + first,
                  .end = c.end.data() + first,
                  .soft_cap = soft_cap,
                  .state = {o.maximum.data(), o.sum.data(), o.acc.data(), c.dim}},
                 scratch);
  }
  return o;
}

TEST_F(Bf16Attention, EqualsTheFormula) {
  for (const float cap : {0.0f, 2.0f}) {
    for (const auto& [dim, tokens, num_tiles] :
         {std::tuple(64, 32, 4), {16, 16, 8}, {48, 48, 2}, {128, 128, 1}, {256, 64, 2}}) {
      const Case c(dim, tokens, num_tiles, 40, dim);
      const Outcome found = attend(c, 0, c.rows, cap);
      std::vector<float> actual, expected;
      for (int row = 0; row < c.rows; ++row) {
        if (c.begin[row] >= c.end[row]) {
          EXPECT_EQ(found.sum[row], 0);
          continue;
        }
        std::vector<double> out(dim);
        double sum = 0;
        for (int t = c.begin[row]; t < c.end[row]; ++t) {
          double score = 0;
          for (int f = 0; f < dim; ++f)
            score += double{c.queries[size_t(row) * dim + f]} * c.keys[size_t(t) * dim + f];
          const double weight = std::exp(cap == 0 ? score : cap * std::tanh(score / cap));
          sum += weight;
          for (int f = 0; f < dim; ++f) out[f] += weight * c.values[size_t(t) * dim + f];
        }
        for (int f = 0; f < dim; ++f) {
          expected.push_back(static_cast<float>(out[f] / sum));
          actual.push_back(found.acc[size_t(row) * dim + f] / found.sum[row]);
        }
      }
      const double decibel = test::decibel(actual, expected);
      std::printf("dim %d, tiles of %d, cap %g: %.1f dB\n", dim, tokens, cap, decibel);
      EXPECT_GT(decibel, 48);
    }
  }
}

TEST_F(Bf16Attention, RowsDoNotDependOnEachOther) {
  for (const auto& [dim, tokens, num_tiles] : {std::tuple(64, 32, 4), {16, 16, 8}, {48, 48, 2}}) {
    const Case c(dim, tokens, num_tiles, 40, 7);
    const Outcome all = attend(c, 0, c.rows);
    for (const int count : {1, 2, 5, 12, 13, 25}) {
      for (int first = 0; first + count <= c.rows; first += count) {
        const Outcome part = attend(c, first, count);
        for (int i = 0; i < count; ++i) {
          ASSERT_EQ(part.maximum[i], all.maximum[first + i]) << first + i << " of " << count;
          ASSERT_EQ(part.sum[i], all.sum[first + i]) << first + i << " of " << count;
          for (int f = 0; f < dim; ++f)
            ASSERT_EQ(part.acc[size_t(i) * dim + f], all.acc[size_t(first + i) * dim + f])
                << first + i << " of " << count << ", feature " << f;
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowkey::kernels
