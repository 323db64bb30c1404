// The embedded quantizer: non-uniform nested cells for values of about unit scale (x / row scalar).
//
//   4 bits  Lloyd-Max cells of the standard normal density: 16 intervals, each boundary midway between the
//           conditional means of its neighbours (Lloyd 1982, Max 1960).
//   2 bits  the upper half of the 4-bit code: four cells merged into one.
//   8 bits  each 4-bit cell split into 16 equal steps; the two outer cells end at 4.5.
//
// So a code of width w is the top w bits of the 8-bit code, for every w from 1 to 8, and dropping low bits
// never needs re-encoding. Values: conditional means of the (merged) cells under the normal density up to 4
// bits, middle of the (merged) step from 5 bits on; 8 bits: base[hi] + step[hi] * lo. On N(0, 1) the
// signal-to-noise ratios of 1 to 8 bits are 4.4 / 9.2 / 14.6 / 20.2 / 24.1 / 30.4 / 36.5 / 42.5 dB; one
// uniform range cannot serve them all.
#pragma once

#include <cstdint>
#include <span>

namespace lowkey::kernels {

inline constexpr float kEmbeddedEdge = 4.5f;  // largest |x / row scalar| that is not clipped

struct EmbeddedTables {
  float edge[17];      // boundaries of the 4-bit cells; outermost -4.5 and 4.5
  float inv_step[16];  // 16 / width of the cell
  float base[16];      // 8-bit value of lo = 0
  float step[16];      // of one 8-bit step
  float value4[16];
  float value2[4];
  float value3[8];
  float value1[2];
};

const EmbeddedTables& embedded_tables();

// The 8-bit code of u; shift right by 4 or 6 for the narrower ones. Clips beyond the edge; NaN codes as the
// lowest cell.
uint8_t embedded_code(float u);

// The value of a code of 1 to 8 bits. REQUIRES: code < 2^bits.
float embedded_value(uint8_t code, int bits);

// The row scalar without a profile: max(rms(row), absmax(row) / edge) rounded up to bf16: at the
// default edge nothing clips. Returns the bf16 bits. Sums in index order in f32 over eight interleaved
// partial sums (so that the SIMD version is equal to the bit).
uint16_t embedded_row_scalar(std::span<const float> row, float edge = kEmbeddedEdge);

}  // namespace lowkey::kernels
