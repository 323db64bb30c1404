// The parts of page encoding that run over many elements, in Highway. Each is equal to the bit to the
// reference codec's arithmetic.
//
// "Columns" are [feature][token]: a vector register holds consecutive tokens. "Rows" are [token][feature]. A
// plane of keys is packed from columns, a plane of values from rows: in both, `outer` elements n apart share
// a 32-bit word and `inner` runs along the words.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/page/page_format.h"

namespace lowkey::kernels::simd {

inline constexpr int kEncodeLanes = 16;  // f32 lanes of the widest vector; inner strides are multiples of it

// Rows [tokens][dim] of `dtype` to columns with stride `tokens`, minus mean [dim] (null: 0). `tokens` and
// `dim` are multiples of 4.
void load_columns(const std::byte* rows, DType dtype, int tokens, int dim, const float* mean, float* columns);

// columns [dim][tokens] -> rows with `stride`, a multiple of 4; what is behind `dim` is undefined.
void columns_to_rows(const float* columns, int dim, int tokens, float* rows, int stride);

// columns *= 1 / scale, feature by feature.
void unscale_columns(const float* scale, int dim, int tokens, float* columns);

// embedded_row_scalar() of every token.
void column_norms(const float* columns, int dim, int tokens, float edge, uint16_t* norms);

// Minimum and maximum over blocks of `span` consecutive outer elements: [ceil(outer / span)][inner]. NaN
// changes neither.
void block_extremes(const float* values, int stride, int outer, int inner, int span, float* low, float* high);

// One group of features in the order of its planes.
struct GroupValues {
  const float* values = nullptr;
  int stride = 0;
  int outer = 0;
  int inner = 0;  // whole vectors are read: rounded up to kEncodeLanes
};

// codes [outer][inner rounded up to kEncodeLanes].
//
// embedded_code(value / norm) >> (8 - bits), or of 0 where norm is not above 0. `norms`: one per inner
// element (rounded up to kEncodeLanes) or one per outer.
void embedded_codes(const GroupValues& group, const float* norms, bool norm_of_inner, int bits,
                    uint32_t* codes);

// affine_code(). The pair of element (o, i) is pairs[outer_step * (o / outer_span) + inner_step * (i /
// inner_span)]; either inner_span is 1 and inner_step 1, or inner_span is a multiple of kEncodeLanes and
// `inner_offset` says how many elements of the first block lie before the group.
struct AffineIndex {
  int outer_span = 1, outer_offset = 0, outer_step = 0;
  int inner_span = 1, inner_offset = 0, inner_step = 0;
};
void affine_codes(const GroupValues& group, const float* minima, const float* steps, const AffineIndex& index,
                  int bits, uint32_t* codes);

// The value itself, as f32 or bf16.
void full_codes(const GroupValues& group, DType dtype, uint32_t* codes);

// One plane: bits [left, left + bits) of the codes, words [outer / n][inner]. Writes all of its words.
void pack_plane(const uint32_t* codes, int outer, int inner, int bits, int left, uint32_t* words);

}  // namespace lowkey::kernels::simd
