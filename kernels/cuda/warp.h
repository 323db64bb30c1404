// Operations of whole warps: shuffles, votes, sums, matrix products. The emulation gathers what the lanes
// hold by PTX's own tables (PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k32"), so a kernel that puts
// an element into the wrong lane computes something else here, too.
#pragma once

#include "kernels/cuda/device_math.h"

namespace lowkey::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarpSize = 32;

// Operands of one product D[16][8] += A[16][k] B[k][8], as one lane holds them: k = 16 of bf16, 32 of bytes.
struct FragmentA {
  uint32_t words[4];
};
struct FragmentB {
  uint32_t words[2];
};
template <class T>
struct FragmentC {
  T values[4];
};

#ifdef __CUDACC__

template <class T>
__device__ __forceinline__ T shuffle(T x, int lane) {
  return __shfl_sync(kAllLanes, x, lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(kAllLanes, x, mask);
}
__device__ __forceinline__ void sync_warp() {
  __syncwarp();
}
// Whether it is so in any lane.
__device__ __forceinline__ bool any_lane(bool x) {
  return __any_sync(kAllLanes, x) != 0;
}

__device__ __forceinline__ void multiply_bf16(FragmentC<float>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
__device__ __forceinline__ void multiply_f16(FragmentC<float>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
// A of unsigned bytes or signed ones, B of the other kind.
__device__ __forceinline__ void multiply_u8_s8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
__device__ __forceinline__ void multiply_s8_s8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
__device__ __forceinline__ void multiply_s8_u8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
__device__ __forceinline__ void multiply_u8_u8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
// k = 16: word 0 of A has row lane / 4, word 1 row lane / 4 + 8; both, and B's, k = 4 (lane % 4) .. + 3.
__device__ __forceinline__ void multiply_u8_s8_k16(FragmentC<int>& c, uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
               : "r"(a0), "r"(a1), "r"(b));
}
__device__ __forceinline__ void multiply_s8_s8_k16(FragmentC<int>& c, uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
               : "r"(a0), "r"(a1), "r"(b));
}
// Four matrices of 8 rows of 16 bytes: lane 8 m + r names row r of matrix m; lane l gets, of each, word l % 4
// of row l / 4. Transposed: halves of word pairs change places, lane l gets column l / 4, rows 2 (l % 4),
// + 1.
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&words)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(const void* row, uint32_t (&words)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

#else

namespace emulation {

// collective() with types: all(ins, outs), arrays of pointers to 32 lanes' In and Out.
template <class In, class Out, class All>
void warp_collective(const In& in, Out& out, const All& all) {
  collective(
      kAllLanes, &in, &out,
      [](const void* const* ins, void* const* outs, const void* context) {
        const In* typed_ins[kWarpSize];
        Out* typed_outs[kWarpSize];
        for (int i = 0; i < kWarpSize; ++i) {
          typed_ins[i] = static_cast<const In*>(ins[i]);
          typed_outs[i] = static_cast<Out*>(outs[i]);
        }
        (*static_cast<const All*>(context))(typed_ins, typed_outs);
      },
      &all);
}

template <class T>
struct Asked {
  T value;
  int lane;
};

template <class T>
T exchange(T x, int source) {
  T result{};
  warp_collective(Asked<T>{x, source}, result, [](const Asked<T>* const* ins, T* const* outs) {
    for (int i = 0; i < kWarpSize; ++i)
      if (outs[i] != nullptr) *outs[i] = ins[ins[i]->lane]->value;
  });
  return result;
}

inline int own_lane() {
  const Place& place = here();
  return static_cast<int>((place.thread.z * place.block_dim.y + place.thread.y) * place.block_dim.x +
                          place.thread.x) %
         kWarpSize;
}

struct Operands {
  FragmentA a;
  FragmentB b;
};
inline int byte_of(const uint32_t* words, int index, bool is_signed) {
  const uint32_t byte = words[index / 4] >> 8 * (index % 4) & 0xff;
  return is_signed ? static_cast<int8_t>(byte) : static_cast<int>(byte);
}

// Row i of A is in lanes with group i % 8; words 0 and 2 for i < 8, 1 and 3 else. Bytes: word 0 or 1 has
// k = 4 (lane % 4) .. + 3, word 2 or 3 those + 16. bf16: two per word, k = 2 (lane % 4), and + 8.
template <bool kSignedA, bool kSignedB>
void multiply_bytes(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  FragmentC<int> sum{};
  warp_collective(Operands{a, b}, sum, [](const Operands* const* ins, FragmentC<int>* const* outs) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int v = 0; v < 4; ++v) {
        const int row = lane / 4 + v / 2 * 8, column = lane % 4 * 2 + v % 2;
        int total = 0;
        for (int k = 0; k < 32; ++k) {
          const Operands& left = *ins[row % 8 * 4 + k % 16 / 4];
          const Operands& right = *ins[column * 4 + k % 16 / 4];
          total += byte_of(&left.a.words[k / 16 * 2 + row / 8], k % 4, kSignedA) *
                   byte_of(&right.b.words[k / 16], k % 4, kSignedB);
        }
        outs[lane]->values[v] = total;
      }
    }
  });
  for (int v = 0; v < 4; ++v) c.values[v] += sum.values[v];
}

}  // namespace emulation

template <class T>
T shuffle(T x, int lane) {
  return emulation::exchange(x, lane);
}
template <class T>
T shuffle_xor(T x, int mask) {
  return emulation::exchange(x, emulation::own_lane() ^ mask);
}
inline void sync_warp() {
  emulation::exchange(0, 0);
}
inline bool any_lane(bool x) {
  bool any = false;
  emulation::warp_collective(x, any, [](const bool* const* ins, bool* const* outs) {
    bool found = false;
    for (int i = 0; i < kWarpSize; ++i) found |= *ins[i];
    for (int i = 0; i < kWarpSize; ++i) *outs[i] = found;
  });
  return any;
}

namespace emulation {

template <class ToFloat>
void multiply_halves(FragmentC<float>& c, const FragmentA& a, const FragmentB& b, const ToFloat& to_float) {
  FragmentC<float> sum{};
  warp_collective(Operands{a, b}, sum, [&](const Operands* const* ins, FragmentC<float>* const* outs) {
    const auto half = [&](uint32_t word, int index) {
      return to_float(static_cast<uint16_t>(word >> 16 * index));
    };
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int v = 0; v < 4; ++v) {
        const int row = lane / 4 + v / 2 * 8, column = lane % 4 * 2 + v % 2;
        float total = 0;
        for (int k = 0; k < 16; ++k) {
          const Operands& left = *ins[row % 8 * 4 + k % 8 / 2];
          const Operands& right = *ins[column * 4 + k % 8 / 2];
          total += half(left.a.words[k / 8 * 2 + row / 8], k % 2) * half(right.b.words[k / 8], k % 2);
        }
        outs[lane]->values[v] = total;
      }
    }
  });
  for (int v = 0; v < 4; ++v) c.values[v] += sum.values[v];
}

// k = 16 of bytes: what a product of k = 32 has of the first half.
template <bool kSignedA, bool kSignedB>
void multiply_bytes_k16(FragmentC<int>& c, uint32_t a0, uint32_t a1, uint32_t b) {
  multiply_bytes<kSignedA, kSignedB>(c, {{a0, a1, 0, 0}}, {{b, 0}});
}

}  // namespace emulation

inline void multiply_bf16(FragmentC<float>& c, const FragmentA& a, const FragmentB& b) {
  emulation::multiply_halves(c, a, b, [](uint16_t bits) { return bf16_to_f32(bits); });
}
inline void multiply_f16(FragmentC<float>& c, const FragmentA& a, const FragmentB& b) {
  emulation::multiply_halves(c, a, b, [](uint16_t bits) { return f16_to_f32(bits); });
}
inline void multiply_u8_s8_k16(FragmentC<int>& c, uint32_t a0, uint32_t a1, uint32_t b) {
  emulation::multiply_bytes_k16<false, true>(c, a0, a1, b);
}
inline void multiply_s8_s8_k16(FragmentC<int>& c, uint32_t a0, uint32_t a1, uint32_t b) {
  emulation::multiply_bytes_k16<true, true>(c, a0, a1, b);
}
inline void multiply_u8_s8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  emulation::multiply_bytes<false, true>(c, a, b);
}
inline void multiply_s8_s8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  emulation::multiply_bytes<true, true>(c, a, b);
}
inline void multiply_s8_u8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  emulation::multiply_bytes<true, false>(c, a, b);
}
inline void multiply_u8_u8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  emulation::multiply_bytes<false, false>(c, a, b);
}

namespace emulation {

struct Matrices {
  uint32_t words[4];
};
template <bool kTransposed>
void load_matrices(const void* row, uint32_t (&words)[4]) {
  Matrices result{};
  warp_collective(row, result, [](const void* const* const* rows, Matrices* const* outs) {
    const auto half = [&](int matrix, int r, int column) {
      uint16_t value;
      std::memcpy(&value, static_cast<const std::byte*>(*rows[8 * matrix + r]) + 2 * column, 2);
      return static_cast<uint32_t>(value);
    };
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      for (int m = 0; m < 4; ++m)
        outs[lane]->words[m] =
            kTransposed ? half(m, c, r) | half(m, c + 1, r) << 16 : half(m, r, c) | half(m, r, c + 1) << 16;
    }
  });
  for (int m = 0; m < 4; ++m) words[m] = result.words[m];
}

}  // namespace emulation

inline void load_matrices(const void* row, uint32_t (&words)[4]) {
  emulation::load_matrices<false>(row, words);
}
inline void load_matrices_transposed(const void* row, uint32_t (&words)[4]) {
  emulation::load_matrices<true>(row, words);
}

#endif

// Sums and maxima over the lanes that differ in the bits below `lanes` (a power of two); all get the result.
template <int lanes = kWarpSize>
__device__ __forceinline__ float sum_over(float x) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
template <int lanes = kWarpSize>
__device__ __forceinline__ float max_over(float x) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

}  // namespace lowkey::kernels::cuda
