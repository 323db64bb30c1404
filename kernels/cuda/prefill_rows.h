// A warp's 32 rows of prefill_attention.cu, and their queries: into the coordinates of a segment, and into
// the order of the products' operands.
#pragma once

#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/prefill_tile.h"

namespace lowkey::kernels::cuda {

inline constexpr int kMs = 2;  // products of 16 rows that a warp has
inline constexpr int kWarpRows = 16 * kMs;
static_assert(kWarpRows == kPrefillWarpRows);

// Of each row of a warp, in shared memory: what is needed now and then.
struct RowNumbers {
  int first[kWarpRows], limit[kWarpRows];  // slots of the run of tokens at hand that it sees: [first, limit)
  float factor[kWarpRows], bias[kWarpRows];  // score = factor * product + bias
  int offset[kWarpRows];                     // of sums of products with biased bytes
  // Of what is in the output already.
  float flushed_maximum[kWarpRows], flushed_sum[kWarpRows];
};

static_assert(sizeof(RowNumbers) % 128 == 0);

// The least and the most of RowNumbers::first and limit in a warp; both grow with the rows.
struct Seen {
  int least_limit, most_limit, least_first, most_first;
};

// A pair of floats as bf16 and what that leaves, as bf16: together almost the floats.
struct Split {
  uint32_t high, low;
};
__device__ __forceinline__ Split split(float a, float b) {
  const uint32_t high = pack_bf16(a, b);
  return {high, pack_bf16(a - from_bf16(high & 0xffffu), b - as_float(high & 0xffff0000u))};
}

// `kBytes`: queries become bytes where codes are attended.
template <bool kBytes, int kGroups>
struct PrefillRows {
  using Tile = KeyValueTile<kBytes, kGroups>;
  static constexpr int kTiles = 2 * kGroups;  // products of 8 features
  static constexpr int kParts = kGroups / 2;  // of 32 features

  const StepView& step;
  const PrefillTile& tile;
  const int head;
  uint4* const queries;  // [kMs][kGroups][lane]: operands of bf16, or [kMs][kParts][lane] of bytes
  RowNumbers& rows;
  int lane = threadIdx.x % kWarpSize, row = lane / 4, quarter = lane % 4;
  int warp = threadIdx.x / kWarpSize;

  FragmentC<float> acc[kMs][kTiles];

  __device__ PrefillRows(const StepView& step_, const PrefillTile& tile_, int head_, uint4* queries_,
                         RowNumbers& rows_)
      : step(step_), tile(tile_), head(head_), queries(queries_), rows(rows_) {}

  __device__ bool idle() const { return warp * kWarpRows >= tile.num_rows * step.group; }
  // This lane's row i in the warp, and in the tile, all query heads counted.
  __device__ int own_row(int i) const { return i / 2 * 16 + i % 2 * 8 + row; }
  __device__ int row_of(int i) const { return warp * kWarpRows + own_row(i); }
  __device__ int token_of(int index) const { return min(index / step.group, tile.num_rows - 1); }
  // Of q and the output.
  __device__ int64_t query_of(int index) const {
    return int64_t{tile.first_row + token_of(index)} * step.num_q_heads + head * step.group +
           index % step.group;
  }
  template <class FirstOf, class LimitOf>
  __device__ Seen seen(const FirstOf& first_of, const LimitOf& limit_of) const {
    Seen result;
    sync_warp();
    const int own = token_of(warp * kWarpRows + lane);
    rows.first[lane] = first_of(own);
    rows.limit[lane] = limit_of(own);
    sync_warp();
    const int low = token_of(warp * kWarpRows), high = token_of(warp * kWarpRows + kWarpRows - 1);
    result.least_first = first_of(low);
    result.most_first = first_of(high);
    result.least_limit = limit_of(low);
    result.most_limit = limit_of(high);
    return result;
  }

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) acc[m][t] = {};
    }
  }

  // Feature that value c of product tile t of a query stands for.
  __device__ int query_feature(int t, int c) const {
    return 8 * (4 * (t / 4) + quarter) + 2 * (t % 4) + c;
  }

  // Rows of q times the scale, in acc[m].
  __device__ void load_queries(int m) {
    const float scale = step.scale * kLog2e;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* q = step.q + query_of(row_of(2 * m + h)) * step.head_dim;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int f = query_feature(t, c);
          acc[m][t].values[2 * h + c] = f < step.head_dim ? q[f] * scale : 0.0f;
        }
      }
    }
  }
  __device__ void store_bf16_queries(int m) {
#pragma unroll
    for (int k = 0; k < kGroups; ++k) {
      const float(&a)[4] = acc[m][2 * k].values;
      const float(&b)[4] = acc[m][2 * k + 1].values;
      queries[(m * kGroups + k) * kWarpSize + lane] = {pack_bf16(a[0], a[1]), pack_bf16(a[2], a[3]),
                                                       pack_bf16(b[0], b[1]), pack_bf16(b[2], b[3])};
    }
  }

  // The queries as they are, for exact rows; the sums so far stay.
  __device__ void take_exact_queries() {
    const float scale = step.scale * kLog2e;
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int k = 0; k < kGroups; ++k) {
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int f = query_feature(2 * k + w / 2, 0);
          const float* q = step.q + query_of(row_of(2 * m + w % 2)) * step.head_dim + f;
          words[w] = f < step.head_dim ? pack_bf16(q[0] * scale, q[1] * scale) : 0;
        }
        queries[(m * kGroups + k) * kWarpSize + lane] = {words[0], words[1], words[2], words[3]};
      }
    }
    rows.factor[lane] = 1;
    rows.bias[lane] = 0;
    sync_warp();
  }

  // A pair of floats in each of two words, in place.
  static __device__ void split_in_place(FragmentC<float>& c) {
    const Split upper = split(c.values[0], c.values[1]), lower = split(c.values[2], c.values[3]);
    c.values[0] = as_float(upper.high), c.values[1] = as_float(upper.low);
    c.values[2] = as_float(lower.high), c.values[3] = as_float(lower.low);
  }
  static __device__ FragmentA operand(const FragmentC<float>& a, const FragmentC<float>& b, int low) {
    return {{as_bits(a.values[low]), as_bits(a.values[2 + low]), as_bits(b.values[low]),
             as_bits(b.values[2 + low])}};
  }
  // c += (high + low) of two tiles of a split operand, times the same of a map.
  static __device__ void multiply_split(FragmentC<float>& c, const FragmentC<float>& a,
                                        const FragmentC<float>& b, const FragmentB& high,
                                        const FragmentB& low) {
    multiply_bf16(c, operand(a, b, 0), high);
    multiply_bf16(c, operand(a, b, 1), high);
    multiply_bf16(c, operand(a, b, 0), low);
  }

  // The queries in the coordinates of a segment's keys.
  __device__ void take_queries(const DeviceVector& key, const FastSide& side) {
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
      load_queries(m);
      for (int h = 0; h < 2; ++h) {
        float bias = 0;
        if (key.mean != nullptr) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            for (int c = 0; c < 2; ++c) {
              const int f = query_feature(t, c);
              if (f < step.head_dim) bias = fmaf(acc[m][t].values[2 * h + c], key.mean[f], bias);
            }
          }
        }
        bias = sum_over<4>(bias);
        if (quarter == 0) rows.bias[own_row(2 * m + h)] = bias;
        if (quarter == 0) rows.factor[own_row(2 * m + h)] = 1;
      }
      if (key.query_map != nullptr) map_queries(m, key);
      scale_queries(m, key, side);
      if constexpr (kBytes) {
        round_queries(m);
      } else {
        store_bf16_queries(m);
      }
    }
    sync_warp();
  }
  __device__ void map_queries(int m, const DeviceVector& key) {
    FragmentC<float> q[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      q[t] = acc[m][t];
      split_in_place(q[t]);
    }
    const int parts = map_parts(step.head_dim), tiles = map_parts(key.layout.dim) * 4;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      FragmentC<float> c{};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        if (part >= parts || t >= tiles) continue;
        const uint4* chunk = key.query_map + (int64_t{t * parts + part} * kWarpSize + lane) * 2;
        const uint4 high = chunk[0], low = chunk[1];
        multiply_split(c, q[4 * part], q[4 * part + 1], {{high.x, high.y}}, {{low.x, low.y}});
        multiply_split(c, q[4 * part + 2], q[4 * part + 3], {{high.z, high.w}}, {{low.z, low.w}});
      }
      acc[m][t] = c;
    }
  }
  // In units of the codes; what has none is 0.
  __device__ void scale_queries(int m, const DeviceVector& key, const FastSide& side) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int f = query_feature(t, c);
        const CodeForm form = Expander::form_of(side, f / kGroupFeatures);
        float scale = form == CodeForm::kNone || f >= key.layout.dim ? 0.0f : 1 / unit_of(form);
        if (scale != 0.0f && key.scale != nullptr) scale *= key.scale[f];
        acc[m][t].values[c] *= scale;
        acc[m][t].values[2 + c] *= scale;
      }
    }
  }
  // To bytes, relative to the row's largest.
  __device__ void round_queries(int m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = 0;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        largest = fmaxf(largest, fmaxf(fabsf(acc[m][t].values[2 * h]), fabsf(acc[m][t].values[2 * h + 1])));
      largest = max_over<4>(largest);
      const float inverse = largest > 1e-30f ? 127 / largest : 0.0f;
      int sum = 0;
#pragma unroll
      for (int k = 0; k < kParts; ++k) {
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          uint32_t word = 0;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float x = acc[m][4 * k + 2 * w + i / 2].values[2 * h + i % 2];
            const int rounded = static_cast<int>(rintf(x * inverse));
            sum += rounded;
            word |= (static_cast<uint32_t>(rounded) & 0xff) << 8 * i;
          }
          reinterpret_cast<uint32_t*>(queries + (m * kParts + k) * kWarpSize + lane)[2 * w + h] = word;
        }
      }
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (quarter != 0) continue;
      rows.factor[own_row(2 * m + h)] = largest / 127;
      rows.offset[own_row(2 * m + h)] = -128 * sum;
    }
  }
};

}  // namespace lowkey::kernels::cuda
