// Quantized blocks of GGUF files as floats, bit for bit what ggml's own reference gives
// (ggml-org/ggml, src/ggml-quants.c: dequantize_row_*).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/gguf/gguf_header.h"
#include "kernels/ops/few_bit_weights.h"

namespace lowkey::worker {

// `elements`: whole blocks of the type. Quantized types: Q8_0, Q4_0, Q5_0, Q4_K, Q6_K; F32, F16 and BF16 too.
void dequantize_gguf(GgufType type, const std::byte* data, int64_t elements, float* out);

// How codes of a type are held whose blocks of 32 have a scale of their own: in 8 bits (Q8_0, Q5_0), in 4
// (Q4_0), in 4 with offsets (Q4_K). 0 bits: another form.
kernels::FewBitForm gguf_form(GgufType type);
// The codes of such a block, the `block`-th 32 elements of those from `data` on. Those of Q4_K are the
// file's, 8 smaller; its scales and minima are rounded to halves.
kernels::FewBitScale gguf_codes(GgufType type, const std::byte* data, int64_t block,
                                std::span<int8_t, kernels::kWeightBlock> codes);

}  // namespace lowkey::worker
