// tokenizer.model of a model from anywhere: an error line, or a tokenizer that works.
#include <cstdint>

#include "base/check.h"
#include "coordinator/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = lowkey::coordinator::Tokenizer::from_sentencepiece(bytes, "", "fuzz");
  if (!tokenizer) {
    LOWKEY_CHECK(tokenizer.error().code == lowkey::Code::kBadInput && !tokenizer.error().message.empty());
    return 0;
  }
  const auto ids = (*tokenizer)->encode("Hello, w\xc3\xb6rld  42!\n\xff", true);
  for (const int32_t id : ids) {
    LOWKEY_CHECK(id >= 0 && id < (*tokenizer)->vocab_size(), "id {} of {}", id, (*tokenizer)->vocab_size());
  }
  (void)(*tokenizer)->decode(ids, false);
  return 0;
}
