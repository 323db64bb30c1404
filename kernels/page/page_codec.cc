#include "kernels/page/page_codec.h"

#include <bit>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/page/dtype.h"
#include "kernels/page/embedded_quantizer.h"

namespace lowkey::kernels {
namespace {

// Where element (token, feature of the group) of a plane is: bits [shift, shift + bits) of a little-endian
// word.
struct Slot {
  size_t word;
  int shift;
};

Slot slot_of(Side side, const Plane& plane, int page_tokens, int token, int feature) {
  const int n = 32 / plane.bits;
  if (side == Side::kKey) {
    return {static_cast<size_t>(feature / n) * page_tokens + token, feature % n * plane.bits};
  }
  return {static_cast<size_t>(token / n) * plane.features + feature, token % n * plane.bits};
}

uint32_t low_bits(int bits) {
  return bits == 32 ? ~0u : (1u << bits) - 1;
}

uint32_t read_slot(const std::byte* plane_bytes, Slot slot, int bits) {
  uint32_t word;
  std::memcpy(&word, plane_bytes + 4 * slot.word, 4);
  return (word >> slot.shift) & low_bits(bits);
}

void write_slot(std::byte* plane_bytes, Slot slot, int bits, uint32_t value) {
  uint32_t word;
  std::memcpy(&word, plane_bytes + 4 * slot.word, 4);
  word = (word & ~(low_bits(bits) << slot.shift)) | (value << slot.shift);
  std::memcpy(plane_bytes + 4 * slot.word, &word, 4);
}

// The raw bits of a stored element, for full planes.
uint32_t element_bits(const std::byte* rows, DType dtype, size_t i) {
  uint32_t bits = 0;
  std::memcpy(&bits, rows + i * dtype_bytes(dtype), dtype_bytes(dtype));
  return bits;
}

float element_value(uint32_t bits, DType dtype) {
  if (dtype == DType::kF32) return std::bit_cast<float>(bits);
  return dtype == DType::kBf16 ? bf16_to_f32(static_cast<uint16_t>(bits))
                               : f16_to_f32(static_cast<uint16_t>(bits));
}

const Plane* planes_of(const PageLayout& layout, const VectorLayout& vector) {
  return layout.planes.data() + vector.first_plane;
}

uint16_t* scalars_of(const VectorLayout& vector, PageView page) {
  return reinterpret_cast<uint16_t*>(page.slabs[0] + vector.scalars_offset);
}

void encode_full(const PageLayout& layout, const VectorLayout& vector, const std::byte* rows, PageView page) {
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = planes_of(layout, vector)[i];
    std::byte* bytes = page.slabs[plane.level] + plane.offset;
    for (int token = 0; token < layout.page_tokens; ++token) {
      for (int f = 0; f < plane.features; ++f) {
        const size_t source = static_cast<size_t>(token) * vector.dim + plane.feature + f;
        write_slot(bytes, slot_of(vector.side, plane, layout.page_tokens, token, f), plane.bits,
                   element_bits(rows, layout.dtype, source));
      }
    }
  }
}

// Codes of one row, all planes. `used[group]`: the code bits that earlier planes of the group have taken.
void encode_row(const PageLayout& layout, const VectorLayout& vector, int token, const float* row,
                float scalar, PageView page) {
  int used[kMaxGroups] = {};
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = planes_of(layout, vector)[i];
    int& taken = used[plane.feature / kGroupFeatures];
    for (int f = 0; f < plane.features; ++f) {
      const uint8_t code = embedded_code(scalar > 0.0f ? row[plane.feature + f] / scalar : 0.0f);
      const uint32_t piece = (code >> (8 - taken - plane.bits)) & low_bits(plane.bits);
      write_slot(page.slabs[plane.level] + plane.offset,
                 slot_of(vector.side, plane, layout.page_tokens, token, f), plane.bits, piece);
    }
    taken += plane.bits;
  }
}

void decode_full(const PageLayout& layout, const VectorLayout& vector, PageView page, float* rows) {
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = planes_of(layout, vector)[i];
    const std::byte* bytes = page.slabs[plane.level] + plane.offset;
    for (int token = 0; token < layout.page_tokens; ++token) {
      for (int f = 0; f < plane.features; ++f) {
        const Slot slot = slot_of(vector.side, plane, layout.page_tokens, token, f);
        rows[static_cast<size_t>(token) * vector.dim + plane.feature + f] =
            element_value(read_slot(bytes, slot, plane.bits), layout.dtype);
      }
    }
  }
}

void decode_row(const PageLayout& layout, const VectorLayout& vector, int token, PageView page, int levels,
                float* row) {
  const float scalar = bf16_to_f32(scalars_of(vector, page)[token]);
  int used[kMaxGroups] = {};
  uint8_t codes[kMaxGroups * kGroupFeatures] = {};
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = planes_of(layout, vector)[i];
    if (plane.level >= levels) continue;
    for (int f = 0; f < plane.features; ++f) {
      const Slot slot = slot_of(vector.side, plane, layout.page_tokens, token, f);
      uint8_t& code = codes[plane.feature + f];
      code = static_cast<uint8_t>(code << plane.bits |
                                  read_slot(page.slabs[plane.level] + plane.offset, slot, plane.bits));
    }
    used[plane.feature / kGroupFeatures] += plane.bits;
  }
  for (int f = 0; f < vector.dim; ++f) {
    const int bits = used[f / kGroupFeatures];
    row[f] = bits == 0 ? 0.0f : embedded_value(codes[f], bits) * scalar;  // no bits: the mean
  }
}

}  // namespace

void encode_vector(const PageLayout& layout, const VectorLayout& vector, const std::byte* rows,
                   PageView page) {
  if (vector.quantizer == Quantizer::kFull) return encode_full(layout, vector, rows, page);
  std::vector<float> row(vector.dim);
  for (int token = 0; token < layout.page_tokens; ++token) {
    for (int f = 0; f < vector.dim; ++f) {
      row[f] = load_element(rows, layout.dtype, static_cast<size_t>(token) * vector.dim + f);
    }
    const uint16_t scalar = embedded_row_scalar(row);
    scalars_of(vector, page)[token] = scalar;
    encode_row(layout, vector, token, row.data(), bf16_to_f32(scalar), page);
  }
}

void decode_vector(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels,
                   float* rows) {
  LOWKEY_CHECK(levels >= 1 && levels <= layout.num_levels, "levels {} of {}", levels, layout.num_levels);
  if (vector.quantizer == Quantizer::kFull) return decode_full(layout, vector, page, rows);
  for (int token = 0; token < layout.page_tokens; ++token) {
    decode_row(layout, vector, token, page, levels, rows + static_cast<size_t>(token) * vector.dim);
  }
}

void write_sink(const PageLayout& layout, const VectorLayout& vector, const std::byte* rows,
                std::byte* sink_slab) {
  LOWKEY_CHECK(layout.sink_tokens > 0, "layout without sink");
  std::memcpy(sink_slab + vector.sink_offset, rows,
              static_cast<size_t>(layout.sink_tokens) * vector.dim * dtype_bytes(layout.dtype));
}

}  // namespace lowkey::kernels
