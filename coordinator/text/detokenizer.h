// Token ids to text while they are being generated.
#pragma once

#include <cstdint>
#include <string>

namespace lowkey::coordinator {

class Tokenizer;

enum class TextStart {
  kBeginning,  // the ids are a text of their own: SentencePiece's first space is taken away, as decode() does
  kAfterPrompt,  // the ids go on from a prompt: a first space separates them from it and stays
};

// One per request and not thread-safe; the tokenizer must outlive it. The pieces together are what decode()
// gives for the same ids. They can differ only in how many U+FFFD stand for ill-formed bytes of a
// byte-fallback vocabulary: decode() gives up a whole run of byte tokens, a stream has sent its good
// characters already.
class StreamDetokenizer {
 public:
  explicit StreamDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = true,
                             TextStart start = TextStart::kBeginning);

  // The text that is complete now, always well-formed UTF-8; at most three bytes are held back.
  std::string push(int32_t id);
  // What was held back, as U+FFFD. Afterwards as new, but no longer at the beginning of the text.
  std::string flush();

 private:
  void take_complete(std::string& out);
  void strip_start(std::string& out);

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool is_first_;
  int strip_left_;  // characters that may still be taken away from the start
  std::string pending_;
};

}  // namespace lowkey::coordinator
