// The metadata of a GGUF file from anywhere: an error line, or a tokenizer that works, and a chat template that parses
// or not.
#include <cstdint>

#include "base/gguf/gguf_header.h"
#include "coordinator/text/chat_template.h"
#include "tests/fuzz/check_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span file(reinterpret_cast<const std::byte*>(data), size);
  const auto header = lowkey::parse_gguf_header(file, "fuzz.gguf");
  if (!header) return 0;
  if (const std::string* source = header->text("tokenizer.chat_template"))
    (void)lowkey::coordinator::ChatTemplate::parse(*source);
  lowkey::fuzz::check_tokenizer(lowkey::coordinator::Tokenizer::from_gguf(*header, "fuzz.gguf"));
  return 0;
}
