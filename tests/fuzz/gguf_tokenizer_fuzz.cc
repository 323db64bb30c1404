// The metadata of a GGUF file from anywhere: an error line, or a tokenizer that works, and a chat template that parses
// or not.
#include <cstdint>

#include "base/check.h"
#include "base/gguf/gguf_header.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span file(reinterpret_cast<const std::byte*>(data), size);
  const auto header = lowkey::parse_gguf_header(file, "fuzz.gguf");
  if (!header) return 0;
  if (const std::string* source = header->text("tokenizer.chat_template"))
    (void)lowkey::coordinator::ChatTemplate::parse(*source);
  const auto tokenizer = lowkey::coordinator::Tokenizer::from_gguf(*header, "fuzz.gguf");
  if (!tokenizer) {
    LOWKEY_CHECK(tokenizer.error().code == lowkey::Code::kBadInput && !tokenizer.error().message.empty());
    return 0;
  }
  const auto ids = (*tokenizer)->encode("Hello, w\xc3\xb6rld  42!\n<s>ab\xff", true);
  for (const int32_t id : ids) {
    LOWKEY_CHECK(id >= 0 && id < (*tokenizer)->vocab_size(), "id {} of {}", id, (*tokenizer)->vocab_size());
  }
  (void)(*tokenizer)->decode(ids, false);
  return 0;
}
