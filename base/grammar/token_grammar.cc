#include "base/grammar/token_grammar.h"

#include <algorithm>
#include <bitset>

#include "base/check.h"

namespace lowkey::grammar {
namespace {

constexpr size_t kUnitsOfAState = 16;    // besides its stacks
constexpr size_t kFirstSlots = 1 << 10;  // of the hash table

uint64_t mixed(uint64_t hash, uint32_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;
  return hash ^ hash >> 29;
}

}  // namespace

size_t TokenGrammar::StacksHash::operator()(const std::vector<StackId>& stacks) const {
  uint64_t hash = stacks.size();
  for (const StackId id : stacks) hash = mixed(hash, static_cast<uint32_t>(id));
  return hash;
}

TokenGrammar::TokenGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie)
    : automaton_(std::move(automaton)), trie_(std::move(trie)) {
  divide_bytes();
  forget();
}

void TokenGrammar::divide_bytes() {
  std::bitset<257> begins;
  for (const Automaton::Node& node : automaton_.nodes) {
    for (const Automaton::Edge& edge : node.edges) {
      begins.set(edge.low);
      begins.set(edge.high + 1u);
    }
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    if (byte > 0 && begins[byte]) ++num_classes_;
    classes_[byte] = static_cast<uint8_t>(num_classes_);
  }
  ++num_classes_;
}

// State 0 is the beginning.
void TokenGrammar::forget() {
  ++generation_;
  stacks_.clear();
  slots_.assign(kFirstSlots, kUnknown);
  marks_.clear();
  search_ = 0;
  states_.clear();
  next_.clear();
  state_ids_.clear();
  units_of_states_ = sets_ = 0;
  state_of({stack(automaton_.starts[automaton_.root], kBottom)});
}

bool TokenGrammar::keeps_too_much() const {
  return states_.size() >= kMaxStates || sets_ >= kMaxSets || units() >= kMaxUnits;
}

// Forgets everything else; returns where the state is now.
TokenGrammar::StateId TokenGrammar::keep_only(StateId state) {
  State kept = std::move(states_[state]);
  const std::vector<Stack> old = std::move(stacks_);
  forget();
  std::unordered_map<StackId, StackId> moved;
  std::vector<StackId> way;
  for (StackId& top : kept.stacks) {
    StackId at = top;
    for (way.clear(); at != kBottom && !moved.contains(at); at = old[at].below) way.push_back(at);
    StackId below = at == kBottom ? kBottom : moved[at];
    for (auto id = way.rbegin(); id != way.rend(); ++id) below = moved[*id] = stack(old[*id].node, below);
    top = below;
  }
  return add_state(std::move(kept));
}

size_t TokenGrammar::slot_of(NodeId node, StackId below) const {
  const uint64_t hash = mixed(mixed(0, static_cast<uint32_t>(node)), static_cast<uint32_t>(below));
  size_t slot = hash & (slots_.size() - 1);
  const auto is_other = [&](StackId id) {
    return id != kUnknown && (stacks_[id].node != node || stacks_[id].below != below);
  };
  while (is_other(slots_[slot])) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

TokenGrammar::StackId TokenGrammar::stack(NodeId node, StackId below) {
  const size_t slot = slot_of(node, below);
  if (slots_[slot] != kUnknown) return slots_[slot];
  const auto id = static_cast<StackId>(stacks_.size());
  slots_[slot] = id;
  stacks_.push_back({node, below, below == kBottom ? 1 : stacks_[below].depth + 1});
  marks_.push_back(0);
  if (2 * stacks_.size() > slots_.size()) {
    slots_.assign(2 * slots_.size(), kUnknown);
    for (size_t i = 0; i < stacks_.size(); ++i)
      slots_[slot_of(stacks_[i].node, stacks_[i].below)] = static_cast<StackId>(i);
  }
  return id;
}

// In the search at hand.
bool TokenGrammar::first_time(StackId stack) {
  return std::exchange(marks_[stack], search_) != search_;
}

TokenGrammar::StateId TokenGrammar::add_state(State state) {
  units_of_states_ += state.stacks.size() + kUnitsOfAState;
  states_.push_back(std::move(state));
  next_.resize(next_.size() + num_classes_, kUnknown);
  return static_cast<StateId>(states_.size() - 1);
}

TokenGrammar::StateId TokenGrammar::state_of(const std::vector<StackId>& stacks) {
  if (stacks.empty()) return kDead;
  const auto known = state_ids_.find(stacks);
  if (known != state_ids_.end()) return known->second;
  State state;
  // Everything that can be reached without a byte; a call puts its return on the stack, a rule's end takes
  // it.
  open_.assign(stacks.rbegin(), stacks.rend());
  ++search_;
  size_t seen = 0;
  while (!open_.empty()) {
    const StackId id = open_.back();
    open_.pop_back();
    ++state.work;
    if (!first_time(id)) continue;
    ++seen;
    const auto [node_id, below, depth] = stacks_[id];
    const Automaton::Node& node = automaton_.nodes[node_id];
    if (!node.edges.empty() && state.stacks.size() < kMaxStacks) state.stacks.push_back(id);
    if (node.ends_rule) {
      if (below == kBottom)
        state.can_end = true;
      else
        open_.push_back(below);
    }
    if (seen > 64 * kMaxStacks) continue;
    for (auto call = node.calls.rbegin(); call != node.calls.rend() && depth < kMaxDepth; ++call)
      open_.push_back(stack(automaton_.starts[call->rule], stack(call->to, below)));
    for (auto to = node.empty.rbegin(); to != node.empty.rend(); ++to) open_.push_back(stack(*to, below));
  }
  const StateId id = add_state(std::move(state));
  units_of_states_ += stacks.size();
  state_ids_.emplace(stacks, id);
  return id;
}

TokenGrammar::StateId TokenGrammar::step(StateId from, uint8_t byte) {
  const size_t at = static_cast<size_t>(from) * num_classes_ + classes_[byte];
  if (next_[at] != kUnknown) return next_[at];
  reached_.clear();
  ++search_;
  for (const StackId id : states_[from].stacks) {
    const auto [node, below, depth] = stacks_[id];
    for (const Automaton::Edge& edge : automaton_.nodes[node].edges) {
      if (byte < edge.low || byte > edge.high) continue;
      const StackId to = stack(edge.to, below);
      if (first_time(to)) reached_.push_back(to);
    }
  }
  const StateId to = state_of(reached_);
  return next_[at] = to;
}

// `work`: what it took is added; may be null.
TokenGrammar::StateId TokenGrammar::run(StateId from, std::string_view bytes, uint64_t* work) {
  for (const char byte : bytes) {
    if (from == kDead) break;
    if (keeps_too_much()) from = keep_only(from);
    if (work) *work += states_[from].stacks.size();
    from = step(from, static_cast<uint8_t>(byte));
    if (work && from != kDead) *work += states_[from].work;
  }
  return from;
}

TokenGrammar::StateId TokenGrammar::locate(Cursor& cursor) {
  if (cursor.generation_ != generation_) {
    if (keeps_too_much()) forget();
    cursor.state_ = run(0, cursor.text_, nullptr);
  } else if (keeps_too_much()) {
    cursor.state_ = keep_only(cursor.state_);
  }
  cursor.generation_ = generation_;
  LOWKEY_CHECK(cursor.state_ != kDead, "a text of {} bytes that was refused", cursor.text_.size());
  return cursor.state_;
}

TokenGrammar::Cursor TokenGrammar::start() {
  return {};
}

bool TokenGrammar::advance(Cursor& cursor, std::string_view bytes) {
  if (cursor.dead_) return false;
  const StateId to = run(locate(cursor), bytes, &cursor.work_);
  cursor.text_ += bytes;
  cursor.state_ = to;
  cursor.generation_ = generation_;
  cursor.dead_ = to == kDead;
  return !cursor.dead_;
}

std::shared_ptr<const AllowedTokens> TokenGrammar::allowed(Cursor& cursor, bool* computed) {
  *computed = false;
  if (cursor.work_ > kMaxWorkOfAText) return nullptr;
  StateId state = locate(cursor);
  if (states_[state].allowed) return states_[state].allowed;
  *computed = true;
  auto tokens = std::make_shared<AllowedTokens>();
  Walk result = walk(state, tokens.get());
  if (result == Walk::kTooMuchKept) {  // what was kept of others must not decide
    state = keep_only(state);
    cursor.state_ = state;
    cursor.generation_ = generation_;
    result = walk(state, tokens.get());
  }
  if (result != Walk::kDone) return nullptr;
  ++sets_;
  states_[state].allowed = std::move(tokens);
  return states_[state].allowed;
}

TokenGrammar::Walk TokenGrammar::walk(StateId from, AllowedTokens* allowed) {
  ++walk_;
  allowed->tokens = TokenSet(trie_->vocab_size());
  allowed->can_end = states_[from].can_end;
  uint64_t work = 0;
  size_t states = 0;
  std::vector<StateId> way(TokenTrie::kMaxBytes + 1);
  way[0] = from;
  const auto& nodes = trie_->nodes();
  for (size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    const StateId before = way[node.depth - 1], state = step(before, node.byte);
    work += charge(before, node.byte, state, &states);
    if (work > kMaxWorkOfAWalk || states > kMaxStatesOfAWalk) return Walk::kTooMuchWork;
    if (units() > kMaxUnitsOfAWalk) return Walk::kTooMuchKept;
    if (state == kDead) {
      i = node.behind;
      continue;
    }
    way[node.depth] = state;
    for (const int32_t token : trie_->tokens_at(node)) allowed->tokens.insert(token);
    ++i;
  }
  return Walk::kDone;
}

// What this way of the walk would have taken if nothing had been kept.
uint64_t TokenGrammar::charge(StateId from, uint8_t byte, StateId to, size_t* states) {
  const auto visit = [&](StateId id) -> uint64_t {
    State& state = states_[id];
    if (state.walk == walk_) return 0;
    state.walk = walk_;
    state.charged = {};
    ++*states;
    return state.work;
  };
  uint64_t work = visit(from);
  uint64_t& charged = states_[from].charged[classes_[byte] / 64];
  const uint64_t bit = uint64_t{1} << classes_[byte] % 64;
  if ((charged & bit) == 0) work += states_[from].stacks.size();
  charged |= bit;
  return to == kDead ? work : work + visit(to);
}

}  // namespace lowkey::grammar
