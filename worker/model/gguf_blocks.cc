#include "worker/model/gguf_blocks.h"

#include <array>
#include <cstring>

#include "base/check.h"
#include "kernels/page/dtype.h"

namespace lowkey::worker {
namespace {

float half_at(const std::byte* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return kernels::f16_to_f32(bits);
}

template <GgufType kType>
void from_codes(const std::byte* block, float* out) {
  std::array<int8_t, 32> codes;
  const float d = kernels::f16_to_f32(gguf_codes(kType, block, 0, codes).scale);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(codes[i]) * d;
}

// f16 scale and minimum of the scales; 8 scales and minima of 6 bits in 12 bytes; 128 bytes of 4-bit codes,
// 32 elements in the low halves, the next 32 in the high ones.
struct Q4KPart {
  float step = 0, least = 0;  // element = step * code - least
  const uint8_t* bytes = nullptr;
  int shift = 0;
  int code(int i) const { return bytes[i] >> shift & 15; }
};
Q4KPart q4_k_part(const std::byte* block, int j) {
  const auto* packed = reinterpret_cast<const uint8_t*>(block + 4);
  const int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
  const int least = j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
  return {.step = half_at(block) * static_cast<float>(scale),
          .least = half_at(block + 2) * static_cast<float>(least),
          .bytes = reinterpret_cast<const uint8_t*>(block + 16) + j / 2 * 32,
          .shift = j % 2 * 4};
}
void q4_k(const std::byte* block, float* out) {
  for (int j = 0; j < 8; ++j) {
    const Q4KPart part = q4_k_part(block, j);
    for (int i = 0; i < 32; ++i) out[j * 32 + i] = part.step * static_cast<float>(part.code(i)) - part.least;
  }
}

// 4 low bits in 128 bytes, 2 high bits in 64, 16 signed scales, f16 scale of the scales; codes 32 too large.
void q6_k(const std::byte* block, float* out) {
  const auto* low = reinterpret_cast<const uint8_t*>(block);
  const auto* high = reinterpret_cast<const uint8_t*>(block + 128);
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
  const float d = half_at(block + 208);
  for (int half = 0; half < 2; ++half) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int i = 0; i < 32; ++i) {
        const uint8_t byte = low[half * 64 + quarter % 2 * 32 + i];
        const int bits = (quarter < 2 ? byte & 15 : byte >> 4) | (high[half * 32 + i] >> 2 * quarter & 3)
                                                                     << 4;
        const float step = d * static_cast<float>(scales[half * 8 + quarter * 2 + i / 16]);
        out[half * 128 + quarter * 32 + i] = step * static_cast<float>(bits - 32);
      }
    }
  }
}

}  // namespace

void dequantize_gguf(GgufType type, const std::byte* data, int64_t elements, float* out) {
  const GgufBlock* block = gguf_block(type);
  LOWKEY_CHECK(block != nullptr && elements % block->elements == 0, "{} elements of type {}", elements,
               static_cast<uint32_t>(type));
  const auto each = [&](auto decode) {
    for (int64_t i = 0; i < elements; i += block->elements, data += block->bytes) decode(data, out + i);
  };
  switch (type) {
    case GgufType::kF32:
      std::memcpy(out, data, static_cast<size_t>(elements) * sizeof(float));
      return;
    case GgufType::kF16:
      return each([](const std::byte* from, float* to) { *to = half_at(from); });
    case GgufType::kBf16:
      return each([](const std::byte* from, float* to) {
        uint16_t bits;
        std::memcpy(&bits, from, sizeof(bits));
        *to = kernels::bf16_to_f32(bits);
      });
    case GgufType::kQ8_0:
      return each(from_codes<GgufType::kQ8_0>);
    case GgufType::kQ4_0:
      return each(from_codes<GgufType::kQ4_0>);
    case GgufType::kQ5_0:
      return each(from_codes<GgufType::kQ5_0>);
    case GgufType::kQ4_K:
      return each(q4_k);
    case GgufType::kQ6_K:
      return each(q6_k);
  }
}

// Q8_0: f16 scale; 32 signed bytes. Q4_0: f16 scale; 16 bytes, element i in the low half of byte i, element
// i + 16 in its high half, 8 too large. Q5_0: the fifth bits, element i's in bit i of 32, before the bytes;
// 16 too large.
kernels::FewBitScale gguf_codes(GgufType type, const std::byte* data, int64_t block,
                                std::span<int8_t, kernels::kWeightBlock> codes) {
  LOWKEY_CHECK(gguf_form(type).bits > 0, "codes of type {}", static_cast<uint32_t>(type));
  const int parts = gguf_block(type)->elements / kernels::kWeightBlock;
  data += block / parts * gguf_block(type)->bytes;
  if (type == GgufType::kQ4_K) {
    const Q4KPart part = q4_k_part(data, static_cast<int>(block % parts));
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<int8_t>(part.code(i) - 8);
    const uint16_t step = kernels::f32_to_f16(part.step);
    return {step, kernels::f32_to_f16(8 * kernels::f16_to_f32(step) - part.least)};
  }
  uint16_t scale;
  std::memcpy(&scale, data, sizeof(scale));
  if (type == GgufType::kQ8_0) {
    std::memcpy(codes.data(), data + 2, codes.size());
    return {scale};
  }
  const bool fifth = type == GgufType::kQ5_0;
  uint32_t high = 0;
  if (fifth) std::memcpy(&high, data + 2, sizeof(high));
  const auto* packed = reinterpret_cast<const uint8_t*>(data + (fifth ? 6 : 2));
  const int zero = fifth ? 16 : 8;
  for (int i = 0; i < 16; ++i) {
    codes[i] = static_cast<int8_t>(((packed[i] & 15) | (high >> i & 1) << 4) - zero);
    codes[i + 16] = static_cast<int8_t>(((packed[i] >> 4) | (high >> (i + 16) & 1) << 4) - zero);
  }
  return {scale};
}

kernels::FewBitForm gguf_form(GgufType type) {
  if (type == GgufType::kQ8_0 || type == GgufType::kQ5_0) return {8};
  if (type == GgufType::kQ4_0) return {4};
  return type == GgufType::kQ4_K ? kernels::FewBitForm{4, true} : kernels::FewBitForm{};
}

}  // namespace lowkey::worker
