#include "base/grammar/token_trie.h"

#include <algorithm>
#include <numeric>

namespace lowkey::grammar {

TokenTrie::TokenTrie(std::span<const std::string> texts) : vocab_size_(texts.size()) {
  for (size_t id = 0; id < texts.size(); ++id) {
    if (!texts[id].empty() && texts[id].size() <= kMaxBytes) token_ids_.push_back(static_cast<int32_t>(id));
  }
  // Sorted texts are visited in the trie's order.
  std::ranges::stable_sort(token_ids_, {}, [&](int32_t id) -> const std::string& { return texts[id]; });
  std::vector<uint32_t> way;  // nodes of the text so far
  const auto close = [&](size_t depth) {
    for (; way.size() > depth; way.pop_back())
      nodes_[way.back()].behind = static_cast<uint32_t>(nodes_.size());
  };
  const std::string* before = nullptr;
  for (size_t i = 0; i < token_ids_.size(); ++i) {
    const std::string& text = texts[token_ids_[i]];
    const auto at = static_cast<int32_t>(i);
    if (before != nullptr && *before == text) {
      nodes_[way.back()].tokens[1] = at + 1;
      continue;
    }
    size_t common = 0;
    if (before != nullptr) common = std::ranges::mismatch(*before, text).in1 - before->begin();
    close(common);
    for (size_t depth = common; depth < text.size(); ++depth) {
      way.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({static_cast<uint8_t>(text[depth]), static_cast<uint16_t>(depth + 1), 0, {at, at}});
    }
    nodes_[way.back()].tokens[0] = at;
    nodes_[way.back()].tokens[1] = at + 1;
    before = &text;
  }
  close(0);
}

}  // namespace lowkey::grammar
