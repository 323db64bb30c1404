// Encode and decode one stored vector of one page: the plain reference, written from the formulas of
// VectorLayout. The SIMD versions in kernels/cpu are checked against it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// Slab pointers of one page, indexed by slab (levels, then sink); null where the page has none.
struct PageView {
  std::byte* const* slabs = nullptr;
};

// Encodes the rows of the vector's heads into all its planes, scales and row scalars. `head_rows`: for each
// of its num_heads heads, [page_tokens][head_dim] of layout.dtype. Does not touch the sink slab. Tokens must
// all be present: only complete pages are encoded.
void encode_vector(const PageLayout& layout, const VectorLayout& vector,
                   std::span<const std::byte* const> head_rows, PageView page);

// What the first `levels` levels say of the stored features: f32 [page_tokens][vector.dim], in basis
// coordinates, rounding nothing; features without bits are 0.
void decode_features(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels,
                     float* features);

// The same mapped back: mean + decode^T features, f32 [page_tokens][input_dim]. The sink is not applied.
void decode_vector(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels,
                   float* rows);

// Copies rows 0 .. sink_tokens-1 of `rows` ([page_tokens][head_dim] of one head) into the sink slab.
// REQUIRES: layout.sink_tokens > 0.
void write_sink(const PageLayout& layout, const RowsLayout& where, const std::byte* rows,
                std::byte* sink_slab);

}  // namespace lowkey::kernels
