// Encode and decode one stored vector of one page: the plain reference, written from the formulas. The SIMD
// versions in kernels/cpu are checked against it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// Slab pointers of one page, indexed by slab (levels, then sink); null where the page has none.
struct PageView {
  std::byte* const* slabs = nullptr;
};

// Encodes `rows` ([page_tokens][dim] of layout.dtype) into all planes and row scalars of the vector.
// Does not touch the sink slab. Tokens must all be present: only complete pages are encoded.
void encode_vector(const PageLayout& layout, const VectorLayout& vector, const std::byte* rows, PageView page);

// Decodes the first `levels` levels to f32 [page_tokens][dim], rounding nothing; the sink is not applied.
void decode_vector(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels, float* rows);

// Copies rows 0 .. sink_tokens-1 of `rows` into the sink slab. REQUIRES: layout.sink_tokens > 0.
void write_sink(const PageLayout& layout, const VectorLayout& vector, const std::byte* rows, std::byte* sink_slab);

}  // namespace lowkey::kernels
