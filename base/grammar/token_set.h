// A set of token ids, one bit each.
#pragma once

#include <cstdint>
#include <vector>

namespace lowkey {

struct TokenSet {
  std::vector<uint64_t> words;

  TokenSet() = default;
  explicit TokenSet(size_t size) : words((size + 63) / 64) {}

  // Ids beyond its size are not in it.
  bool contains(int32_t id) const {
    const auto word = static_cast<size_t>(id) / 64;
    return word < words.size() && (words[word] >> (static_cast<size_t>(id) % 64) & 1) != 0;
  }
  void insert(int32_t id) {
    words[static_cast<size_t>(id) / 64] |= uint64_t{1} << static_cast<size_t>(id) % 64;
  }
  bool empty() const {
    for (const uint64_t word : words) {
      if (word != 0) return false;
    }
    return true;
  }
};

}  // namespace lowkey
