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
// E[x | four merged cells]: cells [0, 1.0993) and [1.0993, inf).
constexpr float kPositiveValues2[2] = {0.496786743f, 1.605217099f};

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
    tables.value4[i] = i < 8 ? -kPositiveValues4[7 - i] : kPositiveValues4[i - 8];
  }
  for (int i = 0; i < 4; ++i) tables.value2[i] = i < 2 ? -kPositiveValues2[1 - i] : kPositiveValues2[i - 2];
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
  switch (bits) {
    case 2:
      return kTables.value2[code];
    case 4:
      return kTables.value4[code];
    case 8:
      return kTables.base[code >> 4] + kTables.step[code >> 4] * static_cast<float>(code & 15);
    default:
      LOWKEY_CHECK(false, "no embedded code of {} bits", bits);
  }
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
