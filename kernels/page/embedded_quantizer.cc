#include "kernels/page/embedded_quantizer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels {
namespace {

// Lloyd's fixed point for N(0,1), 16 levels, iterated to convergence in float64: edges = midpoints of values,
// values = E[x | cell]. Tabulated, not computed at start, because these numbers decide page content and must
// be equal on every machine. The negative half mirrors the positive one.
constexpr float kPositiveEdges[9] = {0.0f,         0.258221656f, 0.522403717f, 0.799549758f, 1.09928584f,
                                     1.437138796f, 1.843531847f, 2.400803328f, kEmbeddedEdge};
constexpr float kPositiveValues4[8] = {0.128395036f, 0.388048291f, 0.656759143f, 0.942340434f,
                                       1.256231189f, 1.618046403f, 2.069017172f, 2.732589483f};
// E[x | 2, 4, 8 merged cells].
constexpr float kPositiveValues3[4] = {0.255317227f, 0.788685312f, 1.405989164f, 2.235380915f};
constexpr float kPositiveValues2[2] = {0.496786743f, 1.605217099f};
constexpr float kPositiveValues1[1] = {0.797884561f};

template <size_t N>
constexpr void mirror(const float (&positive)[N], float* values) {
  for (size_t i = 0; i < N; ++i) {
    values[N + i] = positive[i];
    values[N - 1 - i] = -positive[i];
  }
}

constexpr EmbeddedTables make_tables() {
  EmbeddedTables tables{};
  for (int i = 0; i < 9; ++i) {
    tables.edge[8 + i] = kPositiveEdges[i];
    tables.edge[8 - i] = -kPositiveEdges[i];
  }
  for (int i = 0; i < 16; ++i) {
    const float width = tables.edge[i + 1] - tables.edge[i];
    tables.inv_step[i] = 16.0f / width;
    tables.step[i] = width / 16.0f;
    tables.base[i] = tables.edge[i] + tables.step[i] * 0.5f;
  }
  mirror(kPositiveValues4, tables.value4);
  mirror(kPositiveValues3, tables.value3);
  mirror(kPositiveValues2, tables.value2);
  mirror(kPositiveValues1, tables.value1);
  return tables;
}

constexpr EmbeddedTables kTables = make_tables();

}  // namespace

const EmbeddedTables& embedded_tables() {
  return kTables;
}

uint8_t embedded_code(float u) {
  int hi = 0;
  for (int i = 1; i < 16; ++i) hi += u >= kTables.edge[i];
  const float fine = (u - kTables.edge[hi]) * kTables.inv_step[hi];
  const int lo = fine > 0.0f ? static_cast<int>(std::min(fine, 15.0f)) : 0;  // also clips and catches NaN
  return static_cast<uint8_t>(hi * 16 + lo);
}

float embedded_value(uint8_t code, int bits) {
  LOWKEY_CHECK(bits >= 1 && bits <= 8 && code < 1 << bits, "embedded code {} of {} bits", code, bits);
  if (bits == 1) return kTables.value1[code];
  if (bits == 2) return kTables.value2[code];
  if (bits == 3) return kTables.value3[code];
  if (bits == 4) return kTables.value4[code];
  const int merged = 1 << (8 - bits);  // 8-bit steps
  const int hi = code >> (bits - 4), lo = code % (16 / merged) * merged;
  return kTables.base[hi] +
         kTables.step[hi] * (static_cast<float>(lo) + static_cast<float>(merged - 1) * 0.5f);
}

uint16_t embedded_row_scalar(std::span<const float> row, float edge) {
  float sums[8] = {};
  float largest = 0.0f;
  for (size_t i = 0; i < row.size(); ++i) {
    sums[i % 8] += row[i] * row[i];
    largest = std::max(largest, std::fabs(row[i]));
  }
  float sum = 0.0f;
  for (float part : sums) sum += part;
  const float rms = std::sqrt(sum / static_cast<float>(row.size()));
  return f32_to_bf16_up(std::max(rms, largest / edge));
}

}  // namespace lowkey::kernels
