// The header of a GGUF file from anywhere: an error line or tensors that lie inside of the file.
#include <cstdint>

#include "base/check.h"
#include "base/gguf/gguf_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span file(reinterpret_cast<const std::byte*>(data), size);
  const auto header = lowkey::parse_gguf_header(file, "fuzz.gguf");
  if (!header) {
    LOWKEY_CHECK(header.error().code == lowkey::Code::kBadInput && !header.error().message.empty());
    return 0;
  }
  for (const auto& [name, tensor] : header->tensors) {
    LOWKEY_CHECK(tensor.begin <= tensor.end && tensor.end <= size, "{} [{}, {}) in {}", name, tensor.begin,
                 tensor.end, size);
    LOWKEY_CHECK(lowkey::gguf_block(tensor.type) != nullptr && !tensor.shape.empty(), "{}", name);
  }
  return 0;
}
