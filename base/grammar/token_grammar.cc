#include "base/grammar/token_grammar.h"

#include <algorithm>
#include <unordered_set>

#include "base/check.h"

namespace lowkey::grammar {

size_t TokenGrammar::StacksHash::operator()(const std::vector<StackId>& stacks) const {
  uint64_t hash = stacks.size();
  for (const StackId id : stacks) {
    hash = (hash ^ static_cast<uint32_t>(id)) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  }
  return hash;
}

TokenGrammar::TokenGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie)
    : automaton_(std::move(automaton)), trie_(std::move(trie)) {
  forget();
}

// State 0 is the beginning.
void TokenGrammar::forget() {
  ++generation_;
  stacks_.clear();
  stack_ids_.clear();
  states_.clear();
  state_ids_.clear();
  sets_ = 0;
  state_of({stack(automaton_.starts[automaton_.root], kBottom)});
}

TokenGrammar::StackId TokenGrammar::stack(NodeId node, StackId below) {
  const uint64_t key =
      static_cast<uint64_t>(static_cast<uint32_t>(node)) << 32 | static_cast<uint32_t>(below);
  const auto [found, is_new] = stack_ids_.try_emplace(key, static_cast<StackId>(stacks_.size()));
  if (is_new) stacks_.push_back({node, below});
  return found->second;
}

TokenGrammar::StateId TokenGrammar::state_of(std::vector<StackId> stacks) {
  if (stacks.empty()) return kDead;
  const auto known = state_ids_.find(stacks);
  if (known != state_ids_.end()) return known->second;
  State state;
  state.next.fill(kUnknown);
  // Everything that can be reached without a byte; a call puts its return on the stack, a rule's end takes
  // it.
  std::vector<StackId> open(stacks.rbegin(), stacks.rend());
  std::unordered_set<StackId> seen;
  while (!open.empty()) {
    const StackId id = open.back();
    open.pop_back();
    if (!seen.insert(id).second) continue;
    const auto [node_id, below] = stacks_[id];
    const Automaton::Node& node = automaton_.nodes[node_id];
    if (!node.edges.empty() && state.stacks.size() < kMaxStacks) state.stacks.push_back(id);
    if (node.ends_rule) {
      if (below == kBottom)
        state.can_end = true;
      else
        open.push_back(below);
    }
    if (seen.size() > 64 * kMaxStacks) continue;
    for (auto call = node.calls.rbegin(); call != node.calls.rend(); ++call)
      open.push_back(stack(automaton_.starts[call->rule], stack(call->to, below)));
    for (auto to = node.empty.rbegin(); to != node.empty.rend(); ++to) open.push_back(stack(*to, below));
  }
  const auto id = static_cast<StateId>(states_.size());
  states_.push_back(std::move(state));
  state_ids_.emplace(std::move(stacks), id);
  return id;
}

TokenGrammar::StateId TokenGrammar::step(StateId from, uint8_t byte) {
  const StateId known = states_[from].next[byte];
  if (known != kUnknown) return known;
  std::vector<StackId> reached;
  for (size_t i = 0; i < states_[from].stacks.size(); ++i) {
    const auto [node, below] = stacks_[states_[from].stacks[i]];
    for (const Automaton::Edge& edge : automaton_.nodes[node].edges) {
      if (byte < edge.low || byte > edge.high) continue;
      const StackId id = stack(edge.to, below);
      if (std::ranges::find(reached, id) == reached.end()) reached.push_back(id);
    }
  }
  const StateId to = state_of(std::move(reached));
  return states_[from].next[byte] = to;
}

TokenGrammar::StateId TokenGrammar::run(StateId from, std::string_view bytes) {
  for (const char byte : bytes) {
    if (from == kDead) break;
    from = step(from, static_cast<uint8_t>(byte));
  }
  return from;
}

TokenGrammar::StateId TokenGrammar::locate(Cursor& cursor) {
  if (states_.size() >= kMaxStates || sets_ >= kMaxSets) forget();
  if (cursor.generation_ != generation_) {
    cursor.state_ = run(0, cursor.text_);
    cursor.generation_ = generation_;
  }
  LOWKEY_CHECK(cursor.state_ != kDead, "a text of {} bytes that was refused", cursor.text_.size());
  return cursor.state_;
}

TokenGrammar::Cursor TokenGrammar::start() {
  return {};
}

bool TokenGrammar::advance(Cursor& cursor, std::string_view bytes) {
  if (cursor.dead_) return false;
  const StateId to = run(locate(cursor), bytes);
  cursor.text_ += bytes;
  cursor.state_ = to;
  cursor.dead_ = to == kDead;
  return !cursor.dead_;
}

std::shared_ptr<const AllowedTokens> TokenGrammar::allowed(Cursor& cursor, bool* computed) {
  StateId state = locate(cursor);
  *computed = states_[state].allowed == nullptr;
  if (!*computed) return states_[state].allowed;
  auto tokens = walk(state);
  if (tokens == nullptr) {  // what was kept of others must not decide
    forget();
    state = locate(cursor);
    tokens = walk(state);
    if (tokens == nullptr) return nullptr;
  }
  ++sets_;
  return states_[state].allowed = std::move(tokens);
}

std::shared_ptr<const AllowedTokens> TokenGrammar::walk(StateId from) {
  auto allowed = std::make_shared<AllowedTokens>();
  allowed->tokens = TokenSet(trie_->vocab_size());
  allowed->can_end = states_[from].can_end;
  std::vector<StateId> way(TokenTrie::kMaxBytes + 1);
  way[0] = from;
  const auto& nodes = trie_->nodes();
  for (size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    const StateId state = step(way[node.depth - 1], node.byte);
    if (state == kDead) {
      i = node.behind;
      continue;
    }
    if (states_.size() > kMaxStatesOfAWalk) return nullptr;
    way[node.depth] = state;
    for (const int32_t token : trie_->tokens_at(node)) allowed->tokens.insert(token);
    ++i;
  }
  return allowed;
}

}  // namespace lowkey::grammar
