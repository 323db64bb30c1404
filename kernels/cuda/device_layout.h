// PageLayout on the device: the same tables, with what kernels look up resolved to pointers, and the maps
// turned so that neighbouring threads read neighbouring numbers.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "kernels/page/embedded_quantizer.h"
#include "kernels/page/page_format.h"

namespace lowkey::kernels::cuda {

struct DevicePlane {
  Plane plane;
  uint8_t left = 0;        // bits of the group's codes below this plane's
  uint8_t group_bits = 0;  // of all the group's planes
};

// Up to kGroupFeatures features; those without bits have no planes.
struct DeviceGroup {
  uint16_t first_plane = 0;  // of the vector's
  uint8_t num_planes = 0;
  uint8_t bits = 0;
};

struct DeviceVector {
  VectorLayout layout;
  const DevicePlane* planes = nullptr;
  const DeviceGroup* groups = nullptr;
  const float* encode_t = nullptr;  // [input_dim][dim]; null: identity
  const float* decode = nullptr;    // [dim][input_dim]; null: identity
  const float* decode_t = nullptr;  // [input_dim][dim]
  const float* mean = nullptr;      // [input_dim]; null: zero
  const float* scale = nullptr;     // [dim]; null: one
  // `decode` as operands of tensor-core products, bf16 and what that leaves (prefill_attention.h); null:
  // identity, or a vector that has no fast kernel.
  const uint4* query_map = nullptr;
  const uint4* value_map = nullptr;
};

// Parts of 32 features that the maps above have.
__host__ __device__ constexpr int map_parts(int features) {
  return (features + 31) / 32;
}

struct DeviceLayout {
  int page_tokens = 0, sink_tokens = 0, num_levels = 0;
  int num_kv_heads = 0, head_dim = 0, join = 1;
  DType dtype = DType::kBf16;
  const DeviceVector* vectors = nullptr;  // [bank][side][vector]
  const RowsLayout* rows = nullptr;       // [bank][side][head]
  const EmbeddedTables* tables = nullptr;
};

// What launches need to know of a layout on the host.
struct LayoutShape {
  int page_tokens = 0, sink_tokens = 0;
  int num_kv_heads = 0, head_dim = 0, join = 1;
  int vectors() const { return 2 * num_kv_heads / join; }  // of one bank
};

}  // namespace lowkey::kernels::cuda
