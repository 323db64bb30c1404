// What Highway 1.0.3 lacks: integer dot products of bytes and of 16-bit words, and table look-ups by parts of
// bytes. Everything is on 32-bit lanes, each of them 4 bytes or 2 words of one token (or feature). All
// results are exact integers, so they are equal on every instruction set; AVX3_DL (VNNI, VBMI) is the fast
// one. Included once per target (Highway's foreach_target).
#if defined(LOWKEY_SIMD_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWKEY_SIMD_DOT_INL_H_
#undef LOWKEY_SIMD_DOT_INL_H_
#else
#define LOWKEY_SIMD_DOT_INL_H_
#endif

#include <hwy/highway.h>

#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DW = hn::ScalableTag<uint32_t>;  // 4 bytes or 2 words a lane
using VW = hn::Vec<DW>;
using DI = hn::ScalableTag<int32_t>;
using VI = hn::Vec<DI>;

#if HWY_TARGET == HWY_SCALAR  // one lane, in plain C++

HWY_INLINE VI dot4(VI acc, VW bytes, VW signed_bytes) {
  int32_t sum = acc.raw;
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<int32_t>(bytes.raw >> i & 255) * static_cast<int8_t>(signed_bytes.raw >> i & 255);
  }
  return VI{sum};
}

HWY_INLINE VI dot2(VI acc, VW a, VW b) {
  int32_t sum = acc.raw;
  for (int i = 0; i < 32; i += 16) {
    sum += static_cast<int16_t>(a.raw >> i & 0xffff) * static_cast<int16_t>(b.raw >> i & 0xffff);
  }
  return VI{sum};
}

HWY_INLINE VW look_up_bytes(const uint8_t* entries, uint32_t codes, uint32_t mask) {
  uint32_t found = 0;
  for (int i = 0; i < 32; i += 8) found |= uint32_t{entries[codes >> i & mask]} << i;
  return VW{found};
}

class NibbleTable {
 public:
  explicit NibbleTable(const uint8_t* entries) : entries_(entries) {}
  HWY_INLINE VW low(VW codes) const { return look_up_bytes(entries_, codes.raw, 15); }
  HWY_INLINE VW high(VW codes) const { return look_up_bytes(entries_, codes.raw >> 4, 15); }

 private:
  const uint8_t* entries_;
};

class CrumbTable {
 public:
  explicit CrumbTable(const uint8_t* entries) : entries_(entries) {}
  template <int kPart>
  HWY_INLINE VW get(VW codes) const {
    return look_up_bytes(entries_, codes.raw >> 2 * kPart, 3);
  }

 private:
  const uint8_t* entries_;
};

class WordTable {
 public:
  explicit WordTable(const int16_t* entries) : entries_(entries) {}
  template <int kShift>
  HWY_INLINE VW get(VW codes) const {
    const auto low = static_cast<uint16_t>(entries_[codes.raw >> kShift & 15]);
    const auto high = static_cast<uint16_t>(entries_[codes.raw >> (16 + kShift) & 15]);
    return VW{low | uint32_t{high} << 16};
  }

 private:
  const int16_t* entries_;
};

// a b + c of 16-bit words.
HWY_INLINE VW multiply_add_words(VW a, VW b, VW c) {
  const uint32_t low = (a.raw & 0xffff) * (b.raw & 0xffff) + (c.raw & 0xffff);
  const uint32_t high = (a.raw >> 16) * (b.raw >> 16) + (c.raw >> 16);
  return VW{(low & 0xffff) | high << 16};
}

// to[i] = from[order[i]], 16 bytes.
HWY_INLINE void permute_bytes(const void* from, const uint8_t* order, void* to) {
  for (int i = 0; i < 16; ++i) static_cast<uint8_t*>(to)[i] = static_cast<const uint8_t*>(from)[order[i]];
}

#else

#if HWY_TARGET == HWY_AVX3_DL

// By name, not by intrinsic: Highway's target string for AVX3_DL leaves VNNI out.
HWY_INLINE VI dot4(VI acc, VW bytes, VW signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.raw) : "v"(bytes.raw), "v"(signed_bytes.raw));
  return acc;
}

HWY_INLINE VI dot2(VI acc, VW a, VW b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc.raw) : "v"(a.raw), "v"(b.raw));
  return acc;
}

#else

HWY_INLINE VI dot2(VI acc, VW a, VW b) {
#if HWY_TARGET == HWY_AVX3
  return hn::Add(acc, VI{_mm512_madd_epi16(a.raw, b.raw)});
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(acc, VI{_mm256_madd_epi16(a.raw, b.raw)});
#elif HWY_TARGET == HWY_SSE4
  return hn::Add(acc, VI{_mm_madd_epi16(a.raw, b.raw)});
#else
  const DI d;
  const auto high = hn::Mul(hn::ShiftRight<16>(hn::BitCast(d, a)), hn::ShiftRight<16>(hn::BitCast(d, b)));
  const auto low = hn::Mul(hn::ShiftRight<16>(hn::BitCast(d, hn::ShiftLeft<16>(a))),
                           hn::ShiftRight<16>(hn::BitCast(d, hn::ShiftLeft<16>(b))));
  return hn::Add(acc, hn::Add(low, high));
#endif
}

// acc + sum of 4 unsigned bytes times 4 signed ones. As words: pairwise byte products (maddubs) saturate.
HWY_INLINE VI dot4(VI acc, VW bytes, VW signed_bytes) {
  const hn::Repartition<int16_t, DW> d16;
  const VW even = hn::Set(DW(), 0x00ff00ffu);
  const auto words = hn::BitCast(d16, signed_bytes);
  acc = dot2(acc, hn::And(bytes, even), hn::BitCast(DW(), hn::ShiftRight<8>(hn::ShiftLeft<8>(words))));
  return dot2(acc, hn::And(hn::ShiftRight<8>(bytes), even), hn::BitCast(DW(), hn::ShiftRight<8>(words)));
}

#endif

// Look-ups of bytes by 4-bit and 2-bit codes packed in bytes, and of 16-bit words by 4-bit codes. The fast
// versions index one register by more bits than the code has, with entries repeated: that saves masks and
// most shifts. NibbleTable: 64 entries, [i] for code i & 15; CrumbTable: 3 x 64, [p][i] for code
// (i >> 2 p) & 3; WordTable: 32, [i] for code i & 15.
#if HWY_TARGET == HWY_AVX3_DL

class NibbleTable {
 public:
  explicit NibbleTable(const uint8_t* entries) : table_(hn::LoadU(hn::ScalableTag<uint8_t>(), entries)) {}
  HWY_INLINE VW low(VW codes) const { return VW{_mm512_permutexvar_epi8(codes.raw, table_.raw)}; }
  HWY_INLINE VW high(VW codes) const { return low(hn::ShiftRight<4>(codes)); }

 private:
  hn::Vec<hn::ScalableTag<uint8_t> > table_;
};

// get<0> .. get<3>: by the lowest to the highest two bits of every byte.
class CrumbTable {
 public:
  explicit CrumbTable(const uint8_t* entries)
      : first_(load(entries)), second_(load(entries + 64)), third_(load(entries + 128)) {}
  template <int kPart>
  HWY_INLINE VW get(VW codes) const {
    if constexpr (kPart == 0) return VW{_mm512_permutexvar_epi8(codes.raw, first_.raw)};
    if constexpr (kPart == 1) return VW{_mm512_permutexvar_epi8(codes.raw, second_.raw)};
    if constexpr (kPart == 2) return VW{_mm512_permutexvar_epi8(codes.raw, third_.raw)};
    return get<2>(hn::ShiftRight<2>(codes));
  }

 private:
  using V8 = hn::Vec<hn::ScalableTag<uint8_t> >;
  static V8 load(const uint8_t* entries) { return hn::LoadU(hn::ScalableTag<uint8_t>(), entries); }
  V8 first_, second_, third_;
};

#else

class NibbleTable {
 public:
  explicit NibbleTable(const uint8_t* entries)
      : table_(hn::LoadDup128(hn::ScalableTag<uint8_t>(), entries)) {}
  HWY_INLINE VW low(VW codes) const {
    const VW index = hn::And(codes, hn::Set(DW(), 0x0f0f0f0fu));
    return hn::BitCast(DW(), hn::TableLookupBytes(table_, hn::BitCast(hn::ScalableTag<uint8_t>(), index)));
  }
  HWY_INLINE VW high(VW codes) const { return low(hn::ShiftRight<4>(codes)); }

 private:
  hn::Vec<hn::ScalableTag<uint8_t> > table_;
};

class CrumbTable {
 public:
  explicit CrumbTable(const uint8_t* entries) : table_(hn::LoadDup128(hn::ScalableTag<uint8_t>(), entries)) {}
  template <int kPart>
  HWY_INLINE VW get(VW codes) const {
    const VW index = hn::And(hn::ShiftRight<2 * kPart>(codes), hn::Set(DW(), 0x03030303u));
    return hn::BitCast(DW(), hn::TableLookupBytes(table_, hn::BitCast(hn::ScalableTag<uint8_t>(), index)));
  }

 private:
  hn::Vec<hn::ScalableTag<uint8_t> > table_;
};

#endif

// get<s>: by the four bits from s on of every 16-bit word.
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3

class WordTable {
 public:
  explicit WordTable(const int16_t* entries) : table_(hn::LoadU(hn::ScalableTag<int16_t>(), entries)) {}
  template <int kShift>
  HWY_INLINE VW get(VW codes) const {
    return VW{_mm512_permutexvar_epi16(_mm512_srli_epi16(codes.raw, kShift), table_.raw)};
  }

 private:
  hn::Vec<hn::ScalableTag<int16_t> > table_;
};

#else

class WordTable {
 public:
  explicit WordTable(const int16_t* entries) {
    HWY_ALIGN uint8_t low[16], high[16];
    for (int i = 0; i < 16; ++i) {
      low[i] = static_cast<uint8_t>(entries[i] & 255);
      high[i] = static_cast<uint8_t>((entries[i] >> 8) & 255);
    }
    low_ = hn::LoadDup128(hn::ScalableTag<uint8_t>(), low);
    high_ = hn::LoadDup128(hn::ScalableTag<uint8_t>(), high);
  }
  template <int kShift>
  HWY_INLINE VW get(VW codes) const {
    const VW index = hn::And(hn::ShiftRight<kShift>(codes), hn::Set(DW(), 0x000f000fu));
    const auto twice = hn::BitCast(hn::ScalableTag<uint8_t>(), hn::Or(index, hn::ShiftLeft<8>(index)));
    const VW even = hn::Set(DW(), 0x00ff00ffu);
    return hn::Or(hn::And(even, hn::BitCast(DW(), hn::TableLookupBytes(low_, twice))),
                  hn::AndNot(even, hn::BitCast(DW(), hn::TableLookupBytes(high_, twice))));
  }

 private:
  hn::Vec<hn::ScalableTag<uint8_t> > low_, high_;
};

#endif

// a b + c of 16-bit words.
HWY_INLINE VW multiply_add_words(VW a, VW b, VW c) {
  const hn::ScalableTag<int16_t> d16;
  const auto product = hn::Mul(hn::BitCast(d16, a), hn::BitCast(d16, b));
  return hn::BitCast(DW(), hn::Add(product, hn::BitCast(d16, c)));
}

// to[i] = from[order[i]], 16 bytes.
HWY_INLINE void permute_bytes(const void* from, const uint8_t* order, void* to) {
  const hn::Full128<uint8_t> d;
  const auto bytes = hn::LoadU(d, static_cast<const uint8_t*>(from));
  hn::StoreU(hn::TableLookupBytes(bytes, hn::LoadU(d, order)), d, static_cast<uint8_t*>(to));
}

#endif  // HWY_SCALAR

// Rounded to nearest (even); magnitudes below 2^31, which Highway would look after.
HWY_INLINE VI nearest_int(hn::Vec<hn::ScalableTag<float> > x) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  return VI{_mm512_cvtps_epi32(x.raw)};
#else
  return hn::NearestInt(x);
#endif
}

// The largest lane of each of 4 vectors.
HWY_INLINE void max_of_each(const hn::Vec<hn::ScalableTag<float> >* x, float* most) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  const auto halves = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  };
  const __m512 ab = halves(x[0].raw, x[1].raw), cd = halves(x[2].raw, x[3].raw);
  __m512 all = _mm512_max_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  all = _mm512_max_ps(all, _mm512_permute_ps(all, 0x4e));  // a quarter each
  all = _mm512_max_ps(all, _mm512_permute_ps(all, 0xb1));
  const __m512i first = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
  _mm_storeu_ps(most, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, all)));
#else
  const hn::ScalableTag<float> d;
  for (int i = 0; i < 4; ++i) most[i] = hn::GetLane(hn::MaxOfLanes(d, x[i]));
#endif
}

// The four bits from kShift on of every 16-bit word.
template <int kShift>
HWY_INLINE VW nibble_words(VW codes) {
  return hn::And(hn::ShiftRight<kShift>(codes), hn::Set(DW(), 0x000f000fu));
}

// (a & mask) | (b & ~mask)
HWY_INLINE VW select_bits(uint32_t mask, VW a, VW b) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  return VW{_mm512_ternarylogic_epi32(hn::Set(DW(), mask).raw, a.raw, b.raw, 0xca)};
#else
  const VW m = hn::Set(DW(), mask);
  return hn::Or(hn::And(m, a), hn::AndNot(m, b));
#endif
}

// Packs 16 integers of magnitude below 2^7 (or, unsigned, 2^8) into bytes in `order`.
template <class Byte>
HWY_INLINE void store_bytes(const VI* values, const uint8_t* order, uint32_t* out) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  const __m128i bytes =
      std::is_signed_v<Byte> ? _mm512_cvtsepi32_epi8(values[0].raw) : _mm512_cvtusepi32_epi8(values[0].raw);
  const __m128i permute = _mm_loadu_si128(reinterpret_cast<const __m128i*>(order));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(bytes, permute));
#else
  const hn::Rebind<Byte, DI> d8;
  HWY_ALIGN Byte natural[16];
  for (size_t i = 0; i < 16; i += hn::Lanes(DI())) hn::StoreU(hn::DemoteTo(d8, *values++), d8, natural + i);
  permute_bytes(natural, order, out);
#endif
}

// The same of magnitude below 2^15 into 16-bit words; `order` is of the bytes of 8 of them.
HWY_INLINE void store_words(const VI* values, const uint8_t* order, uint32_t* out) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  const __m256i words = _mm512_cvtsepi32_epi16(values[0].raw);
  const __m256i permute =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(order)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_shuffle_epi8(words, permute));
#else
  const hn::Rebind<int16_t, DI> d16;
  HWY_ALIGN int16_t natural[16];
  for (size_t i = 0; i < 16; i += hn::Lanes(DI())) hn::StoreU(hn::DemoteTo(d16, *values++), d16, natural + i);
  permute_bytes(natural, order, out);
  permute_bytes(natural + 8, order, out + 4);
#endif
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LOWKEY_SIMD_DOT_INL_H_
