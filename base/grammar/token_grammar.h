// Runs an automaton over the texts of tokens: which tokens may come next, and whether the text may end.
//
// The automaton's possible stacks after a text are a state; states and their transitions are made when they
// are first needed and kept, so that a token costs a table look-up per byte, and the set of allowed tokens
// one walk through the trie for each state. When too much is kept all of it is forgotten: a cursor carries
// its text and finds back.
//
// Not thread-safe. What it answers depends on the automaton and the text alone.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/grammar/automaton.h"
#include "base/grammar/token_set.h"
#include "base/grammar/token_trie.h"

namespace lowkey::grammar {

struct AllowedTokens {
  TokenSet tokens;       // that go on with the text
  bool can_end = false;  // the text is complete as it is
};

class TokenGrammar {
 public:
  TokenGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie);

  // A place in one text.
  class Cursor {
   public:
    const std::string& text() const { return text_; }

   private:
    friend class TokenGrammar;
    std::string text_;
    uint64_t generation_ = 0;  // of the state
    int32_t state_ = kDead;
    bool dead_ = false;
  };

  Cursor start();
  // False, for good, when the text cannot go on with these bytes.
  bool advance(Cursor& cursor, std::string_view bytes);
  // REQUIRES: the cursor was never refused. `computed`: set when it was not known yet. Null: the automaton
  // has too many states to go through this vocabulary.
  std::shared_ptr<const AllowedTokens> allowed(Cursor& cursor, bool* computed);
  bool can_end(Cursor& cursor) { return states_[locate(cursor)].can_end; }

  static constexpr size_t kMaxStates = 4096, kMaxSets = 512;
  static constexpr size_t kMaxStatesOfAWalk = 16384;  // each about 1 KB
  // Stacks of one state. An automaton that needs more is ambiguous beyond use; what is left out narrows the
  // language and allows nothing wrong.
  static constexpr size_t kMaxStacks = 1024;

 private:
  using StackId = int32_t;  // kBottom: empty
  using StateId = int32_t;
  static constexpr int32_t kBottom = -1, kDead = -1, kUnknown = -2;

  struct Stack {
    NodeId node;
    StackId below;
  };
  struct State {
    std::vector<StackId> stacks;  // whose nodes have edges, in the order in which they were found
    bool can_end = false;
    std::array<StateId, 256> next;
    std::shared_ptr<const AllowedTokens> allowed;
  };
  struct StacksHash {
    size_t operator()(const std::vector<StackId>& stacks) const;
  };

  void forget();
  StackId stack(NodeId node, StackId below);
  StateId state_of(std::vector<StackId> stacks);
  StateId step(StateId from, uint8_t byte);
  StateId locate(Cursor& cursor);
  StateId run(StateId from, std::string_view bytes);
  std::shared_ptr<const AllowedTokens> walk(StateId from);

  const Automaton automaton_;
  const std::shared_ptr<const TokenTrie> trie_;
  uint64_t generation_ = 0;
  std::vector<Stack> stacks_;
  std::unordered_map<uint64_t, StackId> stack_ids_;
  std::vector<State> states_;
  std::unordered_map<std::vector<StackId>, StateId, StacksHash> state_ids_;  // by the stacks before closing
  size_t sets_ = 0;
};

}  // namespace lowkey::grammar
