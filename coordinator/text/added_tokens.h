// The `added_tokens` of tokenizer.json: texts that become one id before anything else looks at them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "coordinator/text/json_node.h"

namespace lowkey::coordinator {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // left out of decoded text on request
  bool normalized = false;   // looked for after normalization, otherwise before
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // swallows whitespace before it
  bool rstrip = false;       // swallows whitespace behind it
};

Result<std::vector<AddedToken>> parse_added_tokens(const JsonNode& document);

// Finds added tokens in a text, leftmost first and there the longest. Immutable and thread-safe.
class AddedTokenMatcher {
 public:
  struct Segment {
    size_t begin, end;
    int32_t id;  // -1: ordinary text
  };

  AddedTokenMatcher();
  // `pattern` is the text to look for: the content, normalized where the token asks for it.
  void add(const AddedToken& token, std::string_view pattern);
  bool empty() const { return tokens_.empty(); }
  std::vector<Segment> split(std::string_view text) const;

 private:
  struct Node {
    std::unordered_map<char, uint32_t> next;
    int32_t token = -1;  // index into tokens_
  };
  // Index into tokens_ and end of the longest token at `pos`, or -1.
  std::pair<int32_t, size_t> longest_at(std::string_view text, size_t pos) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;  // a trie over bytes
  bool starts_[256] = {};    // bytes that begin some token: most positions are skipped by this alone
};

}  // namespace lowkey::coordinator
