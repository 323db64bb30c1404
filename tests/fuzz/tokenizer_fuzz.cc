// tokenizer.json of a model from anywhere: an error line, or a tokenizer that works.
#include "tests/fuzz/check_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  lowkey::fuzz::check_tokenizer(lowkey::coordinator::Tokenizer::from_json(json, "", "fuzz"));
  return 0;
}
