// Whether a grammar accepts a text, byte by byte.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/grammar/token_grammar.h"

namespace lowkey::grammar {

class ByteMatcher {
 public:
  explicit ByteMatcher(Automaton automaton) : grammar_(std::move(automaton), trie()) {}

  bool accepts(std::string_view text) {
    auto cursor = grammar_.start();
    return grammar_.advance(cursor, text) && grammar_.can_end(cursor);
  }
  bool begins(std::string_view text) {
    auto cursor = grammar_.start();
    return grammar_.advance(cursor, text);
  }
  TokenGrammar& grammar() { return grammar_; }

 private:
  static std::shared_ptr<const TokenTrie> trie() {
    std::vector<std::string> bytes;
    for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
    return std::make_shared<const TokenTrie>(bytes);
  }
  TokenGrammar grammar_;
};

}  // namespace lowkey::grammar
