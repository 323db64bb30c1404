// Decoding of an 8-bit embedded vector on the device, written from kernels/page/page_format.h alone.
#pragma once

#include "kernels/page/embedded_quantizer.h"
#include "kernels/page/page_format.h"

namespace lowkey::parity {

int device_count();  // 0 without a driver

// All of host memory: `planes` of the layout, the level-0 slab; `rows` [page_tokens][vector.dim] f32.
// Returns null, or CUDA's message.
const char* decode_embedded8(const kernels::VectorLayout& vector, const kernels::Plane* planes,
                             int num_planes, const kernels::EmbeddedTables& tables, const unsigned char* slab,
                             int slab_bytes, int page_tokens, float* rows);

}  // namespace lowkey::parity
