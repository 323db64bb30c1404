#include "base/grammar/automaton.h"

#include <algorithm>
#include <functional>

namespace lowkey::grammar {
namespace {

constexpr char32_t kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;

int encode(char32_t code, uint8_t* out) {
  if (code < 0x80) {
    out[0] = static_cast<uint8_t>(code);
    return 1;
  }
  const int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (int i = length - 1; i > 0; --i, code >>= 6) out[i] = static_cast<uint8_t>(0x80 | (code & 0x3F));
  out[0] = static_cast<uint8_t>((0xF00 >> length & 0xFF) | code);
  return length;
}

// Nodes from which the end of their rule can be reached. Later nodes mostly follow earlier ones, so a few
// rounds from behind suffice.
std::vector<bool> productive_nodes(const Automaton& automaton) {
  std::vector<bool> good(automaton.nodes.size());
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = automaton.nodes.size(); i-- > 0;) {
      const Automaton::Node& node = automaton.nodes[i];
      if (good[i]) continue;
      const bool now = node.ends_rule ||
                       std::ranges::any_of(node.edges, [&](const auto& e) { return good[e.to]; }) ||
                       std::ranges::any_of(node.empty, [&](NodeId to) { return good[to]; }) ||
                       std::ranges::any_of(node.calls, [&](const auto& call) {
                         return good[call.to] && good[automaton.starts[call.rule]];
                       });
      if (!now) continue;
      good[i] = true;
      changed = true;
    }
  }
  return good;
}

Error refused(const char* why) {
  return Error{Code::kInvalidArgument, why, {}};
}

}  // namespace

AutomatonBuilder::Rule AutomatonBuilder::add_rule() {
  const NodeId start = add_node(), end = add_node();
  automaton_.nodes[end].ends_rule = true;
  automaton_.starts.push_back(start);
  return {static_cast<RuleId>(automaton_.starts.size() - 1), start, end};
}

NodeId AutomatonBuilder::add_node() {
  if (automaton_.nodes.size() > kMaxNodes) return kMaxNodes;
  automaton_.nodes.emplace_back();
  return static_cast<NodeId>(automaton_.nodes.size() - 1);
}

void AutomatonBuilder::bytes(NodeId from, uint8_t low, uint8_t high, NodeId to) {
  if (++ways_ <= kMaxWays) automaton_.nodes[from].edges.push_back({low, high, to});
}

void AutomatonBuilder::empty(NodeId from, NodeId to) {
  if (++ways_ <= kMaxWays) automaton_.nodes[from].empty.push_back(to);
}

void AutomatonBuilder::call(NodeId from, RuleId rule, NodeId to) {
  if (++ways_ <= kMaxWays) automaton_.nodes[from].calls.push_back({rule, to});
}

NodeId AutomatonBuilder::literal(NodeId from, std::string_view text) {
  for (const char c : text) {
    const NodeId to = add_node();
    bytes(from, static_cast<uint8_t>(c), static_cast<uint8_t>(c), to);
    from = to;
  }
  return from;
}

void AutomatonBuilder::literal(NodeId from, std::string_view text, NodeId to) {
  const auto last = static_cast<uint8_t>(text.back());
  bytes(literal(from, text.substr(0, text.size() - 1)), last, last, to);
}

void AutomatonBuilder::code_points(NodeId from, char32_t low, char32_t high, NodeId to) {
  if (low > high) return;
  if (low < kFirstSurrogate) utf8(from, low, std::min<char32_t>(high, kFirstSurrogate - 1), to);
  if (high > kLastSurrogate) utf8(from, std::max<char32_t>(low, kLastSurrogate + 1), high, to);
}

// Splits until both ends differ only in bytes that take all their values, as every UTF-8 automaton does.
void AutomatonBuilder::utf8(NodeId from, char32_t low, char32_t high, NodeId to) {
  for (const char32_t last : {0x7Fu, 0x7FFu, 0xFFFFu}) {
    if (low <= last && last < high) {
      utf8(from, low, last, to);
      return utf8(from, last + 1, high, to);
    }
  }
  for (int i = 1; i < 4 && low >= 0x80; ++i) {
    const char32_t mask = (1u << (6 * i)) - 1;
    if ((low & ~mask) == (high & ~mask)) continue;
    if ((low & mask) != 0) {
      utf8(from, low, low | mask, to);
      return utf8(from, (low | mask) + 1, high, to);
    }
    if ((high & mask) != mask) {
      utf8(from, low, (high & ~mask) - 1, to);
      return utf8(from, high & ~mask, high, to);
    }
  }
  uint8_t first[4], last[4];
  const int length = encode(low, first);
  encode(high, last);
  for (int i = 0; i < length; ++i) {
    const NodeId next = i + 1 < length ? add_node() : to;
    bytes(from, first[i], last[i], next);
    from = next;
  }
}

// A rule that calls itself before any byte would never come to an end.
Status AutomatonBuilder::check_left_recursion() const {
  const size_t count = automaton_.starts.size();
  std::vector<std::vector<RuleId>> first_calls(count);
  std::vector<size_t> seen(automaton_.nodes.size(), count);
  for (size_t rule = 0; rule < count; ++rule) {
    std::vector<NodeId> open{automaton_.starts[rule]};
    while (!open.empty()) {
      const NodeId node = open.back();
      open.pop_back();
      if (std::exchange(seen[node], rule) == rule) continue;
      open.insert(open.end(), automaton_.nodes[node].empty.begin(), automaton_.nodes[node].empty.end());
      for (const auto& call : automaton_.nodes[node].calls) first_calls[rule].push_back(call.rule);
    }
  }
  // Depth first, by hand: chains of rules may be long.
  std::vector<uint8_t> state(count);  // 1: on the way, 2: done
  for (size_t begin = 0; begin < count; ++begin) {
    if (state[begin] != 0) continue;
    std::vector<std::pair<RuleId, size_t>> way{{static_cast<RuleId>(begin), 0}};
    state[begin] = 1;
    while (!way.empty()) {
      auto& [rule, next] = way.back();
      if (next == first_calls[rule].size()) {
        state[rule] = 2;
        way.pop_back();
        continue;
      }
      const RuleId called = first_calls[rule][next++];
      if (state[called] == 1) return refused("it refers to itself with nothing in between");
      if (state[called] == 2) continue;
      state[called] = 1;
      way.emplace_back(called, 0);
    }
  }
  return {};
}

Result<Automaton> AutomatonBuilder::finish(RuleId root) {
  if (too_large()) return refused("it is too large");
  LOWKEY_TRY(check_left_recursion());
  automaton_.root = root;
  const std::vector<bool> good = productive_nodes(automaton_);
  if (!good[automaton_.starts[root]]) return refused("no value can satisfy it");
  for (Automaton::Node& node : automaton_.nodes) {
    std::erase_if(node.edges, [&](const auto& edge) { return !good[edge.to]; });
    std::erase_if(node.empty, [&](NodeId to) { return !good[to]; });
    std::erase_if(node.calls,
                  [&](const auto& call) { return !good[call.to] || !good[automaton_.starts[call.rule]]; });
  }
  return std::move(automaton_);
}

}  // namespace lowkey::grammar
