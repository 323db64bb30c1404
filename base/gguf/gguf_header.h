// The header of a GGUF file (version 2 and 3, little-endian): metadata, and where the tensors lie. Format:
// ggml-org/ggml, docs/gguf.md.
//   "GGUF" version:u32 tensors:u64 pairs:u64 {key type:u32 value}* {name dims:u32 extent:u64* type:u32
//   offset:u64}* padding to general.alignment, data
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace lowkey {

// Of tensor elements; those that are known here.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ5_0 = 6,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ6_K = 14,
  kBf16 = 30
};

// Elements are stored in blocks of so many in so many bytes.
struct GgufBlock {
  std::string_view name;
  int elements = 0;
  int bytes = 0;
};
const GgufBlock* gguf_block(GgufType type);  // null: not known

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // as numpy has it: rows, then columns (the file counts from the fastest)
  GgufType type = GgufType::kF32;
  uint64_t begin = 0;  // bytes from the start of the file
  uint64_t end = 0;
};

using GgufValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<std::string>>;

struct GgufHeader {
  std::map<std::string, GgufValue> metadata;
  std::map<std::string, GgufTensor> tensors;

  // Of this type, or nothing.
  std::optional<int64_t> integer(const std::string& key) const;
  std::optional<double> number(const std::string& key) const;  // integers too
  std::optional<bool> flag(const std::string& key) const;
  const std::string* text(const std::string& key) const;
  const std::vector<std::string>* texts(const std::string& key) const;
  const std::vector<int64_t>* integers(const std::string& key) const;
  const std::vector<double>* numbers(const std::string& key) const;  // of real numbers alone
};

// Checks every length against the file, that offsets are aligned and that tensors lie inside it, each name
// once. Integers beyond 63 bits, arrays of arrays and unknown types are refused. Errors: kBadInput naming
// `name` (the file), key or tensor, what was expected and what was found.
Result<GgufHeader> parse_gguf_header(std::span<const std::byte> file, const std::string& name);

}  // namespace lowkey
