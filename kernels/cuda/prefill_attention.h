// Prefill attention: many query rows of one sequence against its encoded pages and the exact rows of their
// own pages, whole rows at once; the results are the outputs themselves, no partial ones. For the layouts
// that have a fast kernel (FastPlan) under any number of query heads per KV head.
//
// A block has a tile of up to 256 rows (query heads of a group, then further tokens) under one KV head. Codes
// come by bulk copies into a ring and are expanded once per block into shared memory, K as bytes (2 and 4
// bits) or bf16, V as bf16, laid out so that a lane's 16 bytes are its operands of two products; every warp
// then multiplies its 32 rows with them. See README.md for the counting.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/decode_attention.h"

namespace lowkey::kernels::cuda {

inline constexpr int kPrefillRows = 16;  // of one sequence, from which on this kernel takes them
inline constexpr int kPrefillWarpRows = 32;
inline constexpr int kPrefillGroups = 16;  // query heads per KV head, at most

// Consecutive rows of one sequence: num_rows * (query heads per KV head) <= 32 * warps.
struct PrefillTile {
  int sequence = 0;
  int first_row = 0;  // of the step's
  int num_rows = 0;
};

// What all tiles of a launch have in common.
struct PrefillShape {
  int warps = 0;  // 4 or 8; 0: nothing fits
  int max_groups = 0;
  bool narrow = false;       // keys have codes of 2 and 4 bits alone, in all segments
  uint32_t stage_bytes = 0;  // of the largest pages
};

// Chooses `warps`: as many as the shared memory holds rows for, fewer where so few tiles would leave
// multiprocessors without any. `rows`: of query heads, under all KV heads.
void choose_warps(PrefillShape& shape, int64_t rows, const DeviceLimits& limits);

// step.maps has the plans of each segment.
void launch_prefill_attention(cudaStream_t stream, const StepView& step, const PrefillShape& shape,
                              const PrefillTile* tiles, int num_tiles, int num_kv_heads);

}  // namespace lowkey::kernels::cuda
