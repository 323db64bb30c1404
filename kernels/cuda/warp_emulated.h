// What warp.h has of a device's instructions, on the host. What the lanes hold is gathered by PTX's own
// tables (PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k32"), so a kernel that puts an element into the
// wrong lane computes something else here, too.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/fragments.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels::cuda {

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
inline void multiply_s8_u8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  emulation::multiply_bytes<true, false>(c, a, b);
}
inline void multiply_u8_u8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  emulation::multiply_bytes<false, false>(c, a, b);
}

}  // namespace lowkey::kernels::cuda
