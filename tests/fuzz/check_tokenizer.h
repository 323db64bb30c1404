// What has to hold of a tokenizer that was read from anywhere.
#pragma once

#include <memory>

#include "base/check.h"
#include "coordinator/text/tokenizer.h"

namespace lowkey::fuzz {

inline void check_tokenizer(const Result<std::unique_ptr<coordinator::Tokenizer>>& tokenizer) {
  if (!tokenizer) {
    LOWKEY_CHECK(tokenizer.error().code == Code::kBadInput && !tokenizer.error().message.empty());
    return;
  }
  const auto ids = (*tokenizer)->encode("Hello, w\xc3\xb6rld  42!\n<s>ab\xff", true);
  for (const int32_t id : ids)
    LOWKEY_CHECK(id >= 0 && id < (*tokenizer)->vocab_size(), "id {} of {}", id, (*tokenizer)->vocab_size());
  (void)(*tokenizer)->decode(ids, false);
}

}  // namespace lowkey::fuzz
