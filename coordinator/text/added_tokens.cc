#include "coordinator/text/added_tokens.h"

#include <algorithm>
#include <boost/json/value.hpp>

#include "coordinator/text/bpe.h"
#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

bool ends_with_word(std::string_view text) {
  if (text.empty()) return false;
  size_t start = text.size() - 1;
  while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
  return is_word(next_utf8(text, start).code);
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word(next_utf8(text, 0).code);
}

Result<AddedToken> parse_added_token(const JsonNode& node) {
  LOWKEY_ASSIGN(id, node.integer("id", kMaxTokenId));
  LOWKEY_ASSIGN(content, node.string("content"));
  LOWKEY_ASSIGN(special, node.bool_or("special", false));
  LOWKEY_ASSIGN(normalized, node.bool_or("normalized", !special));
  LOWKEY_ASSIGN(single_word, node.bool_or("single_word", false));
  LOWKEY_ASSIGN(lstrip, node.bool_or("lstrip", false));
  LOWKEY_ASSIGN(rstrip, node.bool_or("rstrip", false));
  return AddedToken{static_cast<int32_t>(id), content, special, normalized, single_word, lstrip, rstrip};
}

}  // namespace

Result<std::vector<AddedToken>> parse_added_tokens(const JsonNode& document) {
  std::vector<AddedToken> tokens;
  if (!document.child("added_tokens")) return tokens;
  LOWKEY_ASSIGN(nodes, document.array("added_tokens"));
  for (const JsonNode& node : nodes) {
    LOWKEY_ASSIGN(token, parse_added_token(node));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

AddedTokenMatcher::AddedTokenMatcher() : nodes_(1) {}

void AddedTokenMatcher::add(const AddedToken& token, std::string_view pattern) {
  if (pattern.empty()) return;
  uint32_t node = 0;
  for (const char c : pattern) {
    const auto [entry, inserted] = nodes_[node].next.try_emplace(c, static_cast<uint32_t>(nodes_.size()));
    node = entry->second;
    if (inserted) nodes_.emplace_back();
  }
  if (nodes_[node].token >= 0) return;  // two tokens that look alike: the first one wins
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  starts_[static_cast<uint8_t>(pattern[0])] = true;
}

std::pair<int32_t, size_t> AddedTokenMatcher::longest_at(std::string_view text, size_t pos) const {
  std::pair<int32_t, size_t> best(-1, pos);
  uint32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto next = nodes_[node].next.find(text[i]);
    if (next == nodes_[node].next.end()) break;
    node = next->second;
    if (nodes_[node].token >= 0) best = {nodes_[node].token, i + 1};
  }
  return best;
}

std::vector<AddedTokenMatcher::Segment> AddedTokenMatcher::split(std::string_view text) const {
  std::vector<Segment> segments;
  size_t done = 0;
  for (size_t pos = 0; pos < text.size() && !empty();) {
    if (!starts_[static_cast<uint8_t>(text[pos])]) {
      ++pos;
      continue;
    }
    const auto [index, match_end] = longest_at(text, pos);
    if (index < 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = pos, end = match_end;
    pos = match_end;
    if (token.single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end))))
      continue;
    if (token.lstrip) begin = trim_whitespace(text.substr(0, begin), false, true).size();
    begin = std::max(begin, done);  // spaces that the token before has swallowed are gone
    if (token.rstrip) end = text.size() - trim_whitespace(text.substr(end), true, false).size();
    if (done < begin) segments.push_back({done, begin, -1});
    segments.push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) segments.push_back({done, text.size(), -1});
  return segments;
}

}  // namespace lowkey::coordinator
