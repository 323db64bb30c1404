// The header of a weight file from anywhere: an error line or tensors that lie inside of the file.
#include <cstdint>

#include "base/check.h"
#include "base/safetensors/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span file(reinterpret_cast<const std::byte*>(data), size);
  const auto header = lowkey::parse_safetensors_header(file, "fuzz.safetensors");
  if (!header) {
    LOWKEY_CHECK(header.error().code == lowkey::Code::kBadInput && !header.error().message.empty());
    return 0;
  }
  for (const auto& tensor : header->tensors) {
    LOWKEY_CHECK(tensor.begin <= tensor.end && tensor.end <= size - header->data_begin, "{} [{}, {}) in {}",
                 tensor.name, tensor.begin, tensor.end, size);
  }
  return 0;
}
