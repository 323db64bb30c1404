// Quantized blocks of GGUF files as floats, bit for bit what ggml's own reference gives
// (ggml-org/ggml, src/ggml-quants.c: dequantize_row_*).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/gguf/gguf_header.h"

namespace lowkey::worker {

// `elements`: whole blocks of the type. Quantized types: Q8_0, Q4_0, Q5_0, Q4_K, Q6_K; F32, F16 and BF16 too.
void dequantize_gguf(GgufType type, const std::byte* data, int64_t elements, float* out);

// Bits of integers that hold the codes of a type whose blocks of 32 share one scale: 8 (Q8_0, Q5_0) or 4
// (Q4_0). 0: another form.
int gguf_code_bits(GgufType type);
// The codes of one such block, and its scale, a half: element i is scale * codes[i].
uint16_t gguf_codes(GgufType type, const std::byte* block, std::span<int8_t, 32> codes);

}  // namespace lowkey::worker
