// tokenizer.model of a model from anywhere: an error line, or a tokenizer that works.
#include "tests/fuzz/check_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  lowkey::fuzz::check_tokenizer(lowkey::coordinator::Tokenizer::from_sentencepiece(bytes, "", "fuzz"));
  return 0;
}
