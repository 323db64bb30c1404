// The header of a safetensors file: 8 bytes little-endian header length, JSON, data.
//   {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {"k": "v"}}
// Offsets count from the end of the header. Format: huggingface/safetensors, README "Format".
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace lowkey {

// Larger headers are refused; the format's own libraries set the same limit.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

struct TensorEntry {
  std::string name;
  std::string dtype;  // as the file spells it
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the data, aligned to the element size
  uint64_t end = 0;
};

struct SafetensorsHeader {
  uint64_t data_begin = 0;           // bytes from the start of the file
  std::vector<TensorEntry> tensors;  // by `begin`
  std::map<std::string, std::string> metadata;
};

// Checks everything the format promises: length, JSON, each field once and of its type, known dtype, bytes
// equal to shape product x element size, tensors that cover the data without gap or overlap up to the file's
// last byte. `file` is the whole file, of which only the header is read. Errors: kBadInput naming `name` (the
// file), the tensor, what was expected and what was found.
Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> file, const std::string& name);

// The same bytes written: length, JSON padded with spaces to 8 bytes. Equal arguments give equal bytes;
// offsets are the tensors' `begin` and `end`.
std::string format_safetensors_header(std::span<const TensorEntry> tensors,
                                      const std::map<std::string, std::string>& metadata);

std::string format_shape(std::span<const int64_t> shape);  // "[2, 3]"

}  // namespace lowkey
