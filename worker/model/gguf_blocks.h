// Quantized blocks of GGUF files as floats, bit for bit what ggml's own reference gives
// (ggml-org/ggml, src/ggml-quants.c: dequantize_row_*).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/gguf/gguf_header.h"

namespace lowkey::worker {

// `elements`: whole blocks of the type. Quantized types: Q8_0, Q4_0, Q4_K, Q6_K; F32, F16 and BF16 too.
void dequantize_gguf(GgufType type, const std::byte* data, int64_t elements, float* out);

}  // namespace lowkey::worker
