#include "base/grammar/text_pattern.h"

#include <algorithm>
#include <map>

namespace lowkey::grammar {
namespace {

char32_t next_character(std::string_view text, size_t& pos) {
  const auto lead = static_cast<uint8_t>(text[pos++]);
  if (lead < 0x80) return lead;
  const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
  char32_t code = lead & (0x3F >> more);
  for (int i = 0; i < more && pos < text.size(); ++i)
    code = code << 6 | (static_cast<uint8_t>(text[pos++]) & 0x3F);
  return code;
}

// A control character, quote or backslash as JSON writes it.
std::string escape(char32_t code) {
  switch (code) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      return fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
  }
}

bool is_escaped(char32_t code) {
  return code < 0x20 || code == '"' || code == '\\';
}

void write_range(char32_t low, char32_t high, AutomatonBuilder& builder, NodeId from, NodeId to) {
  if (low < high) {
    const auto [found, is_new] = builder.character_rules.try_emplace({low, high}, 0);
    if (!is_new) return builder.call(from, found->second, to);
    const AutomatonBuilder::Rule rule = builder.add_rule();
    found->second = rule.id;
    builder.call(from, rule.id, to);
    from = rule.start;
    to = rule.end;
  }
  for (char32_t code = low; code <= high && code <= '\\'; ++code) {
    if (is_escaped(code)) builder.literal(from, escape(code), to);
  }
  constexpr std::pair<char32_t, char32_t> kPlain[] = {
      {0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, TextPattern::kLastCharacter}};
  for (const auto& [first, last] : kPlain)
    builder.code_points(from, std::max(low, first), std::min(high, last), to);
}

}  // namespace

TextPattern TextPattern::all_but(std::span<const std::string> texts) {
  TextPattern pattern;
  pattern.start = pattern.add_state();
  pattern.end = pattern.add_state();
  const int free = pattern.add_state();  // has left them all
  pattern.states[free].ranges.push_back({0, kLastCharacter, free});
  pattern.states[free].empty.push_back(pattern.end);
  std::vector<std::map<char32_t, int>> children(3);
  std::vector<bool> is_text(3);
  for (const std::string& text : texts) {
    int at = pattern.start;
    for (size_t pos = 0; pos < text.size();) {
      const char32_t code = next_character(text, pos);
      if (!children[at].contains(code)) {
        const int child = pattern.add_state();
        children[at][code] = child;
        children.emplace_back();
        is_text.push_back(false);
      }
      at = children[at][code];
    }
    is_text[at] = true;
  }
  for (int state = 0; state < static_cast<int>(children.size()); ++state) {
    if (state == pattern.end || state == free) continue;
    char32_t low = 0;
    for (const auto& [code, child] : children[state]) {
      pattern.states[state].ranges.push_back({code, code, child});
      if (code > low) pattern.states[state].ranges.push_back({low, code - 1, free});
      low = code + 1;
    }
    pattern.states[state].ranges.push_back({low, kLastCharacter, free});
    if (!is_text[state]) pattern.states[state].empty.push_back(pattern.end);
  }
  return pattern;
}

void write_text(const TextPattern& pattern, LengthLimits lengths, AutomatonBuilder& builder, NodeId from,
                NodeId to) {
  // One copy of the pattern for each number of characters that matters.
  const int copies = std::max(lengths.least, lengths.most) + 1;
  const size_t states = pattern.states.size();
  std::vector<NodeId> nodes;
  const auto node = [&](int copy, int state) { return nodes[copy * states + state]; };
  for (size_t i = 0; i < copies * states && !builder.too_large(); ++i) nodes.push_back(builder.add_node());
  if (builder.too_large()) return;
  builder.empty(from, node(0, pattern.start));
  for (int copy = 0; copy < copies; ++copy) {
    const bool last = copy + 1 == copies;
    if (copy >= lengths.least) builder.empty(node(copy, pattern.end), to);
    for (size_t state = 0; state < states && !builder.too_large(); ++state) {
      for (const int target : pattern.states[state].empty)
        builder.empty(node(copy, static_cast<int>(state)), node(copy, target));
      if (last && lengths.most >= 0) continue;
      for (const auto& range : pattern.states[state].ranges)
        write_range(range.low, range.high, builder, node(copy, static_cast<int>(state)),
                    node(last ? copy : copy + 1, range.to));
    }
  }
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto code = static_cast<uint8_t>(c);
    if (is_escaped(code)) {
      out += escape(code);
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace lowkey::grammar
