// A byte automaton with calls: what a text in some language of nested rules may go on with. Rules call each
// other, so it needs a stack to run (base/grammar/token_grammar.h). Plain data, made by AutomatonBuilder.
#pragma once

#include <cstdint>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace lowkey::grammar {

using NodeId = int32_t;
using RuleId = int32_t;

struct Automaton {
  struct Edge {
    uint8_t low, high;  // bytes, both included
    NodeId to;
  };
  struct Call {
    RuleId rule;
    NodeId to;  // where it goes on after the rule's end
  };
  struct Node {
    std::vector<Edge> edges;
    std::vector<Call> calls;
    std::vector<NodeId> empty;  // without a byte
    bool ends_rule = false;
  };
  std::vector<Node> nodes;
  std::vector<NodeId> starts;  // of the rules
  RuleId root = 0;
};

// Grows an automaton. When it has become too large everything that is added is lost, and finish() says so.
class AutomatonBuilder {
 public:
  static constexpr size_t kMaxNodes = 200'000, kMaxWays = 2'000'000;

  struct Rule {
    RuleId id;
    NodeId start, end;
  };
  // No rule may accept the empty text.
  Rule add_rule();
  NodeId add_node();
  void bytes(NodeId from, uint8_t low, uint8_t high, NodeId to);
  void empty(NodeId from, NodeId to);
  void call(NodeId from, RuleId rule, NodeId to);
  // The node behind the text.
  NodeId literal(NodeId from, std::string_view text);
  void literal(NodeId from, std::string_view text, NodeId to);
  // A character of [low, high] in UTF-8; surrogates are left out.
  void code_points(NodeId from, char32_t low, char32_t high, NodeId to);
  bool too_large() const { return automaton_.nodes.size() >= kMaxNodes || ways_ >= kMaxWays; }

  // Rules that were made for ranges of characters, to be called again.
  std::map<std::pair<char32_t, char32_t>, RuleId> character_rules;

  // Takes away what cannot lead to the end. Errors, kInvalidArgument: nothing can, a rule begins with itself,
  // too large.
  Result<Automaton> finish(RuleId root);

 private:
  void utf8(NodeId from, char32_t low, char32_t high, NodeId to);
  Status check_left_recursion() const;

  Automaton automaton_;
  size_t ways_ = 0;  // edges, calls and ways without a byte
};

}  // namespace lowkey::grammar
