#include "kernels/cuda/prefill_attention.h"

#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill_tile.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kStages = 2;
constexpr int kMs = 2;  // products of 16 rows that a warp has
constexpr int kWarpRows = 16 * kMs;
static_assert(kWarpRows == kPrefillWarpRows);
constexpr int kWarpsMost = 8;
// The header: bf16 of all 8-bit codes, barriers, plans of the head at all levels.
constexpr uint32_t kBarriersAt = 512, kPlansAt = 1024, kHeaderBytes = 2048;
static_assert(kPlansAt + kMaxLevels * sizeof(FastPlan) <= kHeaderBytes);

// Pages on their way into shared memory: one ring of the block. All threads call everything.
class BlockRing {
 public:
  __device__ BlockRing(std::byte* memory, uint32_t stage_bytes, uint64_t* barriers)
      : memory_(memory), stage_bytes_(stage_bytes), barriers_(barriers) {
#if LOWKEY_BULK_COPIES
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) barrier_init(barriers_ + i);
      barrier_init_done();
    }
    __syncthreads();
#endif
  }

  // The block has done with the stage.
  __device__ void fill(const FastPlan& plan, std::byte* const* slabs) {
    std::byte* stage = memory_ + filled_ % kStages * stage_bytes_;
    const auto chunk_at = [&](int i) {
      return i < kMaxLevels ? plan.key.chunks[i] : plan.value.chunks[i - kMaxLevels];
    };
#if LOWKEY_BULK_COPIES
    if (threadIdx.x == 0) {
      uint64_t* barrier = barriers_ + filled_ % kStages;
      uint32_t bytes = 0;
      for (int i = 0; i < 2 * kMaxLevels; ++i) bytes += chunk_at(i).bytes;
      barrier_expect(barrier, bytes);
      for (int i = 0; i < 2 * kMaxLevels; ++i) {
        const StagedChunk chunk = chunk_at(i);
        if (chunk.bytes > 0)
          bulk_copy(stage + chunk.target, slabs[chunk.slab] + chunk.offset, chunk.bytes, barrier);
      }
    }
#else
    for (int i = 0; i < 2 * kMaxLevels; ++i) {
      const StagedChunk chunk = chunk_at(i);
      for (uint32_t at = threadIdx.x * 16; at < chunk.bytes; at += blockDim.x * 16)
        copy_16(stage + chunk.target + at, slabs[chunk.slab] + chunk.offset + at);
    }
    copies_commit();
#endif
    ++filled_;
  }
  // Keeps the count that wait() goes by.
  __device__ void fill_nothing() {
#if !LOWKEY_BULK_COPIES
    copies_commit();
#endif
    ++filled_;
  }
  __device__ const std::byte* wait() const {
#if LOWKEY_BULK_COPIES
    barrier_wait(barriers_ + used_ % kStages, phases_ >> used_ % kStages & 1);
#else
    copies_wait<kStages - 1>();
    __syncthreads();
#endif
    return memory_ + used_ % kStages * stage_bytes_;
  }
  __device__ void done() {
    phases_ ^= 1u << used_ % kStages;
    ++used_;
  }
  // What was asked for with fill_nothing() is over.
  __device__ void skip() {
    ++used_;
  }

 private:
  std::byte* memory_;
  uint32_t stage_bytes_;
  uint64_t* barriers_;
  uint32_t filled_ = 0, used_ = 0;
  uint32_t phases_ = 0;  // parity that each stage's barrier is in
};

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

template <bool kBytes, int kGroups>
struct PrefillWarp {
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

  float maxima[2 * kMs], sums[2 * kMs];  // sums are of this lane's tokens
  FragmentC<float> acc[kMs][kTiles];
  bool has_flushed = false;

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

  __device__ void begin() {
    for (int i = 0; i < 2 * kMs; ++i) {
      maxima[i] = -INFINITY;
      sums[i] = 0;
    }
    rows.flushed_maximum[lane] = -INFINITY;
    rows.flushed_sum[lane] = 0;
    clear();
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
  static __device__ float unit_of(CodeForm form) {
    return form == CodeForm::kNibbles ? kNibbleUnit : form == CodeForm::kCrumbs ? kCrumbUnit : 1.0f;
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

  __device__ FragmentA query_operand(int index) const {
    const uint4 words = queries[index * kWarpSize + lane];
    return {{words.x, words.y, words.z, words.w}};
  }
  // Scores of a block of 32 tokens: x[m][j][v] is of row 2 m + v / 2, token 8 quarter + 2 j + v % 2.
  __device__ void score_bytes(const Tile& in, int block, float (&x)[kMs][4][4]) const {
    FragmentC<int> c[kMs][4];
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
      const int upper = rows.offset[own_row(2 * m)], lower = rows.offset[own_row(2 * m + 1)];
#pragma unroll
      for (int j = 0; j < 4; ++j) c[m][j] = {{upper, upper, lower, lower}};
    }
#pragma unroll
    for (int part = 0; part < Tile::kKeyParts; ++part) {
      FragmentA q[kMs][2];
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
#pragma unroll
        for (int e = 0; e < 2; ++e) q[m][e] = query_operand(m * kParts + 2 * part + e);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 key = in.keys[((block * 4 + j) * Tile::kKeyParts + part) * kWarpSize + lane];
#pragma unroll
        for (int m = 0; m < kMs; ++m) {
          multiply_s8_u8(c[m][j], q[m][0], {{key.x, key.y}});
          multiply_s8_u8(c[m][j], q[m][1], {{key.z, key.w}});
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int v = 0; v < 4; ++v) x[m][j][v] = static_cast<float>(c[m][j].values[v]);
      }
    }
  }
  __device__ void score_bf16(const Tile& in, int block, float (&x)[kMs][4][4]) const {
    FragmentC<float> c[kMs][4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      FragmentA q[kMs][2];
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
#pragma unroll
        for (int e = 0; e < 2; ++e) q[m][e] = query_operand(m * kGroups + 2 * part + e);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 key = in.keys[((block * 4 + j) * kParts + part) * kWarpSize + lane];
#pragma unroll
        for (int m = 0; m < kMs; ++m) {
          multiply_bf16(c[m][j], q[m][0], {{key.x, key.y}});
          multiply_bf16(c[m][j], q[m][1], {{key.z, key.w}});
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int v = 0; v < 4; ++v) x[m][j][v] = c[m][j].values[v];
      }
    }
  }

  // Scores become weights; the row's sums so far shrink.
  __device__ void weigh(const Tile& in, int block, int first, const Seen& sees, float (&x)[kMs][4][4]) {
    const float* key_norms = in.key_norms + 32 * block + 8 * quarter;
    const float* value_norms = in.value_norms + 32 * block + 8 * quarter;
    const bool masked = first < sees.most_first || first + 32 > sees.least_limit;
    const float cap = step.soft_cap * kLog2e;
    bool shrinks = false;
    float shrink[2 * kMs];
#pragma unroll
    for (int i = 0; i < 2 * kMs; ++i) {
      float largest = maxima[i];
      const float factor = rows.factor[own_row(i)], bias = rows.bias[own_row(i)];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = x[i / 2][j][i % 2 * 2 + c];
          score = fmaf(score * factor, key_norms[2 * j + c], bias);
          if (cap != 0.0f) score = cap * tanhf(score / cap);
          if (masked) {
            const int token = first + 8 * quarter + 2 * j + c;
            if (token < rows.first[own_row(i)] || token >= rows.limit[own_row(i)]) score = -INFINITY;
          }
          largest = fmaxf(largest, score);
        }
      }
      largest = max_over<4>(largest);
      const float base = largest == -INFINITY ? 0.0f : largest;
      shrink[i] = exp2_fast(maxima[i] - base);
      shrinks |= largest != maxima[i];
      maxima[i] = largest;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = x[i / 2][j][i % 2 * 2 + c];
          score = exp2_fast(score - base);
          sum += score;
          score *= value_norms[2 * j + c];
        }
      }
      sums[i] = fmaf(sums[i], shrink[i], sum);
    }
    if (!any_lane(shrinks)) return;
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int v = 0; v < 4; ++v) acc[m][t].values[v] *= shrink[2 * m + v / 2];
      }
    }
  }

  __device__ void add_values(const Tile& in, int block, int value_groups, const float (&x)[kMs][4][4]) {
    FragmentA weights[kMs][2];
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const float(&a)[4] = x[m][2 * s];
        const float(&b)[4] = x[m][2 * s + 1];
        weights[m][s] = {
            {pack_bf16(a[0], a[1]), pack_bf16(a[2], a[3]), pack_bf16(b[0], b[1]), pack_bf16(b[2], b[3])}};
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (t / 2 >= value_groups) continue;
      const uint4 value = in.values[(block * kTiles + t) * kWarpSize + lane];
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
        multiply_bf16(acc[m][t], weights[m][0], {{value.x, value.y}});
        multiply_bf16(acc[m][t], weights[m][1], {{value.z, value.w}});
      }
    }
  }

  // A tile of `count` tokens from slot `first` on. `kExact`: of exact rows.
  template <bool kExact>
  __device__ void attend(const Tile& in, int first, int count, int value_groups, const Seen& sees) {
    if (idle()) return;
    for (int block = 0; block < (count + 31) / 32; ++block) {
      const int begin = first + 32 * block;
      if (begin >= sees.most_limit || begin + 32 <= sees.least_first) continue;
      float x[kMs][4][4];
      if constexpr (kBytes && !kExact) {
        score_bytes(in, block, x);
      } else {
        score_bf16(in, block, x);
      }
      weigh(in, block, begin, sees, x);
      add_values(in, block, value_groups, x);
    }
  }

  // What remains of a row's results in the output beside those at hand.
  __device__ float kept(int i) const {
    const float before = rows.flushed_maximum[own_row(i)];
    return before == -INFINITY ? 0.0f : exp2_fast(before - maxima[i]);
  }

  // Sums in the coordinates of a segment's values become the head's own: in the output, where those of
  // earlier segments are, or, of the last one under the identity, in place.
  __device__ void end_segment(const DeviceVector& value, const FastSide& side, bool last) {
    if (idle()) return;
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int f = 8 * t + 2 * quarter + c;
          float scale =
              f < value.layout.dim ? 1 / unit_of(Expander::form_of(side, f / kGroupFeatures)) : 0.0f;
          if (scale != 0.0f && value.scale != nullptr) scale *= value.scale[f];
          acc[m][t].values[c] *= scale;
          acc[m][t].values[2 + c] *= scale;
        }
      }
    }
    if (last && value.value_map == nullptr && value.mean == nullptr && !has_flushed) return;
    if (value.value_map != nullptr) {
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) split_in_place(acc[m][t]);
      }
    }
    float keep[2 * kMs], own[2 * kMs];
    for (int i = 0; i < 2 * kMs; ++i) {
      float &flushed_maximum = rows.flushed_maximum[own_row(i)], &flushed_sum = rows.flushed_sum[own_row(i)];
      own[i] = sum_over<4>(sums[i]);
      keep[i] = kept(i);
      const float sum = fmaf(flushed_sum, keep[i], own[i]);
      sync_warp();
      if (quarter == 0) flushed_sum = sum, flushed_maximum = maxima[i];
      sums[i] = 0;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (8 * t >= step.head_dim) continue;
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
        FragmentC<float> c = acc[m][t];
        if (value.value_map != nullptr) c = map_values(m, t, value);
        for (int h = 0; h < 2; ++h) {
          const int i = 2 * m + h;
          if (row_of(i) >= tile.num_rows * step.group) continue;
          const int f = 8 * t + 2 * quarter;
          float* out = step.out + query_of(row_of(i)) * step.head_dim + f;
          for (int e = 0; e < 2; ++e) {
            float y = c.values[2 * h + e];
            if (value.mean != nullptr) y = fmaf(value.mean[f + e], own[i], y);
            out[e] = has_flushed ? fmaf(out[e], keep[i], y) : y;
          }
        }
      }
    }
    has_flushed = true;
    clear();
  }
  __device__ FragmentC<float> map_values(int m, int t, const DeviceVector& value) const {
    const int parts = map_parts(value.layout.dim);
    FragmentC<float> c{};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (part >= parts) continue;
      const uint4* chunk = value.value_map + (int64_t{t * parts + part} * kWarpSize + lane) * 2;
      const uint4 high = chunk[0], low = chunk[1];
      multiply_split(c, acc[m][4 * part], acc[m][4 * part + 1], {{high.x, high.y}}, {{low.x, low.y}});
      multiply_split(c, acc[m][4 * part + 2], acc[m][4 * part + 3], {{high.z, high.w}}, {{low.z, low.w}});
    }
    return c;
  }

  __device__ void store() const {
    if (idle()) return;
#pragma unroll
    for (int i = 0; i < 2 * kMs; ++i) {
      const float keep = kept(i);
      const float total = fmaf(rows.flushed_sum[own_row(i)], keep, sum_over<4>(sums[i])), inverse = 1 / total;
      if (row_of(i) >= tile.num_rows * step.group) continue;
      float* out = step.out + query_of(row_of(i)) * step.head_dim + 2 * quarter;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (8 * t >= step.head_dim) continue;
        for (int e = 0; e < 2; ++e) {
          const float y = acc[i / 2][t].values[i % 2 * 2 + e];
          out[8 * t + e] = (has_flushed ? fmaf(out[8 * t + e], keep, y) : y) * inverse;
        }
      }
    }
  }
};

// One block and its tile of rows.
template <bool kBytes, int kGroups>
struct PrefillBlock {
  using Warp = PrefillWarp<kBytes, kGroups>;
  using Tile = typename Warp::Tile;

  const StepView& step;
  const PrefillTile& tile;
  const DeviceSequence& sequence;
  const int head;
  Warp& warp;
  BlockRing& ring;
  const Expander& expander;
  Tile* const tiles;      // two
  FastPlan* const plans;  // of the segment, in shared memory
  int page_tokens = step.layout->page_tokens;
  int first_slot = sequence.first_slot + tile.first_row - sequence.first_row;

  __device__ int slot_of(int token) const { return first_slot + token; }
  __device__ int page_start(int token) const { return slot_of(token) / page_tokens * page_tokens; }
  __device__ int first_seen(int token) const { return step.rows[tile.first_row + token].first_seen; }

  __device__ void attend_segment(const DeviceSegment& segment, bool last) {
    const DeviceLayout& layout = *segment.layout;
    const DeviceMap& map = step.maps[segment.map];
    const int tokens = layout.page_tokens, step_tokens = min(tokens, kPrefillTile);
    const int begin = segment.own ? first_seen(0) / tokens : 0;
    const int end = segment.own ? slot_of(tile.num_rows - 1) / tokens : segment.num_pages;
    if (begin >= end) return;
    __syncthreads();  // the last segment's plans are not read any more
    const auto* from = reinterpret_cast<const uint32_t*>(map.plans + head * layout.num_levels);
    for (int i = threadIdx.x; i < static_cast<int>(layout.num_levels * sizeof(FastPlan) / 4); i += blockDim.x)
      reinterpret_cast<uint32_t*>(plans)[i] = from[i];
    __syncthreads();
    const auto plan_of = [&](int page) -> const FastPlan& {
      return plans[(segment.levels == nullptr ? layout.num_levels : segment.levels[page]) - 1];
    };
    const FastPlan& whole = plans[layout.num_levels - 1];
    const int bank = bank_of(step, segment);
    if (!warp.idle()) warp.take_queries(vector_of(layout, bank, Side::kKey, head), whole.key);
    warp.clear();
    const Seen sees =
        warp.seen([&](int token) { return max(segment.sink_tokens, segment.own ? first_seen(token) : 0); },
                  [&](int token) { return segment.own ? page_start(token) : end * tokens; });

    Expander here = expander;
    here.page_tokens = tokens;
    const auto fill = [&](int page) {
      if (page >= end) return ring.fill_nothing();
      ring.fill(plan_of(page), segment.slabs + int64_t{page} * kMaxSlabs);
    };
    fill(begin);
    fill(begin + 1);
    const int per_page = tokens / step_tokens, steps = (end - begin) * per_page;
    const std::byte* stage = ring.wait();
    tiles[0].expand(here, plan_of(begin), stage, 0, step_tokens);
    __syncthreads();
    for (int i = 0; i < steps; ++i) {
      const int next = i + 1, page = begin + next / per_page;
      if (next < steps) {
        if (next % per_page == 0) {
          ring.done();
          fill(page + 1);
          stage = ring.wait();
        }
        tiles[next % 2].expand(here, plan_of(page), stage, next % per_page * step_tokens, step_tokens);
      }
      warp.template attend<false>(tiles[i % 2], begin * tokens + i * step_tokens, step_tokens,
                                  whole.value.num_groups, sees);
      __syncthreads();
    }
    ring.done();
    ring.skip();  // what was asked for last is nothing
    warp.end_segment(vector_of(layout, bank, Side::kValue, head), whole.value, last);
  }

  // Tokens [0, count) of exact rows, the first of which is slot `first`.
  template <class Read>
  __device__ void attend_exact(int first, int count, const Seen& sees, const Read& read) {
    for (int at = 0; at < count; at += kPrefillTile) {
      const int here = min(kPrefillTile, count - at);
      tiles[0].fill_exact(here, step.head_dim,
                          [&](Side side, int token, int f) { return read(side, at + token, f); });
      __syncthreads();
      warp.template attend<true>(tiles[0], first + at, here, kGroups, sees);
      __syncthreads();
    }
  }
  __device__ void attend_sink(const DeviceSegment& segment) {
    const DeviceLayout& layout = *segment.layout;
    const std::byte* slab = segment.slabs[layout.num_levels];
    const Seen sees =
        warp.seen([&](int token) { return segment.own ? first_seen(token) : 0; },
                  [&](int token) { return segment.own && page_start(token) == 0 ? 0 : segment.sink_tokens; });
    attend_exact(0, segment.sink_tokens, sees, [&](Side side, int token, int f) {
      return load_value(slab + rows_of(layout, bank_of(step, segment), side, head).sink_offset, layout.dtype,
                        int64_t{token} * layout.head_dim + f);
    });
  }

  __device__ void run() {
    const int segments = sequence.num_segments;
    for (int s = 0; s < segments; ++s)
      attend_segment(step.segments[sequence.first_segment + s], s == segments - 1);
    if (!warp.idle()) warp.take_exact_queries();
    for (int s = 0; s < segments; ++s) {
      const DeviceSegment& segment = step.segments[sequence.first_segment + s];
      const bool any = !segment.own || page_start(tile.num_rows - 1) > 0;
      if (segment.sink_tokens > 0 && any) attend_sink(segment);
    }
    const int base = max(page_start(0), first_seen(0)), end = slot_of(tile.num_rows - 1) + 1;
    const Seen sees = warp.seen([&](int token) { return max(page_start(token), first_seen(token)); },
                                [&](int token) { return slot_of(token) + 1; });
    attend_exact(base, end - base, sees, [&](Side side, int token, int f) {
      return exact_value(step, sequence, side, head, base + token, f);
    });
    warp.store();
  }
};

template <bool kBytes, int kGroups>
constexpr uint32_t query_bytes() {
  return kMs * kGroups * kWarpSize * sizeof(uint4);
}
template <bool kBytes, int kGroups>
constexpr uint32_t shared_bytes(int warps, uint32_t stage_bytes) {
  return kHeaderBytes + warps * (query_bytes<kBytes, kGroups>() + sizeof(RowNumbers)) +
         2 * static_cast<uint32_t>(sizeof(KeyValueTile<kBytes, kGroups>)) + kStages * stage_bytes;
}

// Grid: (KV head, tile).
template <bool kBytes, int kGroups>
__global__ void __launch_bounds__(kWarpsMost* kWarpSize, 1)
    prefill_attention(StepView step, const PrefillTile* all_tiles, uint32_t stage_bytes) {
  LOWKEY_SHARED(std::byte, shared);
  using Block = PrefillBlock<kBytes, kGroups>;
  using Tile = typename Block::Tile;
  const EmbeddedTables& values = *step.layout->tables;
  auto* wide_table = reinterpret_cast<uint16_t*>(shared);
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    wide_table[i] = to_bf16(embedded_value(values, static_cast<uint32_t>(i), 8));
  std::byte* queries = shared + kHeaderBytes;
  const int warps = blockDim.x / kWarpSize, own = threadIdx.x / kWarpSize;
  auto* rows = reinterpret_cast<RowNumbers*>(queries + warps * query_bytes<kBytes, kGroups>());
  auto* tiles = reinterpret_cast<std::byte*>(rows + warps);
  const PrefillTile tile = all_tiles[blockIdx.y];
  const Expander expander{QuadTables(values), wide_table, step.layout->page_tokens};
  typename Block::Warp warp{step, tile, static_cast<int>(blockIdx.x),
                            reinterpret_cast<uint4*>(queries + own * query_bytes<kBytes, kGroups>()),
                            rows[own]};
  warp.begin();
  BlockRing ring(tiles + 2 * sizeof(Tile), stage_bytes, reinterpret_cast<uint64_t*>(shared + kBarriersAt));
  Block block{step,
              tile,
              step.sequences[tile.sequence],
              static_cast<int>(blockIdx.x),
              warp,
              ring,
              expander,
              reinterpret_cast<Tile*>(tiles),
              reinterpret_cast<FastPlan*>(shared + kPlansAt)};
  block.run();
}

template <class Run>
void with_kind(const PrefillShape& shape, const Run& run) {
  if (shape.narrow) {
    shape.max_groups <= 4 ? run(std::true_type(), std::integral_constant<int, 4>())
                          : run(std::true_type(), std::integral_constant<int, 8>());
  } else {
    shape.max_groups <= 4 ? run(std::false_type(), std::integral_constant<int, 4>())
                          : run(std::false_type(), std::integral_constant<int, 8>());
  }
}

}  // namespace

void choose_warps(PrefillShape& shape, int64_t rows, const DeviceLimits& limits) {
  shape.warps = 0;
  with_kind(shape, [&](auto bytes, auto groups) {
    for (const int warps : {kWarpsMost, kWarpsMost / 2}) {
      if (shared_bytes<bytes(), groups()>(warps, shape.stage_bytes) > limits.shared_bytes) continue;
      const bool fills = rows > int64_t{limits.multiprocessors} * warps * kWarpRows;
      if (shape.warps == 0 || !(rows > int64_t{limits.multiprocessors} * shape.warps * kWarpRows))
        shape.warps = warps;
      if (fills) break;
    }
  });
}

void launch_prefill_attention(cudaStream_t stream, const StepView& step, const PrefillShape& shape,
                              const PrefillTile* tiles, int num_tiles, int num_kv_heads) {
  with_kind(shape, [&](auto bytes, auto groups) {
    launch(prefill_attention<bytes(), groups()>,
           {dim3(num_kv_heads, num_tiles), dim3(shape.warps * kWarpSize),
            shared_bytes<bytes(), groups()>(shape.warps, shape.stage_bytes)},
           stream, step, tiles, shape.stage_bytes);
  });
}

}  // namespace lowkey::kernels::cuda
