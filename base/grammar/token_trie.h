// The texts of a vocabulary as a trie over their bytes, in depth-first order.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lowkey::grammar {

// Immutable and thread-safe.
class TokenTrie {
 public:
  struct Node {
    uint8_t byte;
    uint16_t depth;     // of its byte in the tokens that go through it, from 1
    uint32_t behind;    // index of the next node that is not below it
    int32_t tokens[2];  // range in token_ids(): those that end here
  };

  // `texts`: by token id; empty ones, and ones of more than kMaxBytes, are left out.
  static constexpr size_t kMaxBytes = 1024;
  explicit TokenTrie(std::span<const std::string> texts);

  size_t vocab_size() const { return vocab_size_; }
  const std::vector<Node>& nodes() const { return nodes_; }
  std::span<const int32_t> tokens_at(const Node& node) const {
    return std::span(token_ids_).subspan(node.tokens[0], node.tokens[1] - node.tokens[0]);
  }

 private:
  size_t vocab_size_;
  std::vector<Node> nodes_;
  std::vector<int32_t> token_ids_;
};

}  // namespace lowkey::grammar
