// Runs an automaton over the texts of tokens: which tokens may come next, and whether the text may end.
//
// The automaton's possible stacks after a text are a state; states and their transitions are made when they
// are first needed and kept, so that a token costs a table look-up per byte, and the set of allowed tokens
// one walk through the trie for each state. When too much is kept it is forgotten: a cursor carries its text
// and finds back.
//
// Work is counted in stacks that are looked at, as if nothing had been kept, so that whether a text or a walk
// takes too much depends on the automaton, the vocabulary and the text alone: every replica agrees.
//
// Not thread-safe.
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
    uint64_t work_ = 0;        // of all of it
    uint64_t generation_ = 0;  // of the state
    int32_t state_ = kDead;
    bool dead_ = false;
  };

  Cursor start();
  // False, for good, when the text cannot go on with these bytes.
  bool advance(Cursor& cursor, std::string_view bytes);
  // REQUIRES: the cursor was never refused. `computed`: set when it was not known yet. Null: the text so far,
  // or going through the vocabulary behind it, takes more work or memory than is allowed.
  std::shared_ptr<const AllowedTokens> allowed(Cursor& cursor, bool* computed);
  bool can_end(Cursor& cursor) { return states_[locate(cursor)].can_end; }

  size_t units() const { return stacks_.size() + units_of_states_; }  // kept

  // Stacks looked at: 10 to 30 ns each.
  static constexpr uint64_t kMaxWorkOfAWalk = 3'000'000, kMaxWorkOfAText = 20'000'000;
  static constexpr size_t kMaxStatesOfAWalk = 16384;
  // Kept from one token to the next. A unit is about 50 bytes: a stack, or the place of some in a state.
  static constexpr size_t kMaxStates = 4096, kMaxSets = 512, kMaxUnits = 500'000;
  static constexpr size_t kMaxUnitsOfAWalk = 2 * kMaxUnits;
  // Stacks of one state. An automaton that needs more is ambiguous beyond use; what is left out narrows the
  // language and allows nothing wrong.
  static constexpr size_t kMaxStacks = 1024;
  static constexpr int32_t kMaxDepth = 400;  // of a stack; two or three for each nested value

 private:
  using StackId = int32_t;  // kBottom: empty
  using StateId = int32_t;
  static constexpr int32_t kBottom = -1, kDead = -1, kUnknown = -2;

  struct Stack {
    NodeId node;
    StackId below;  // an older one
    int32_t depth;
  };
  struct State {
    std::vector<StackId> stacks;  // whose nodes have edges, in the order in which they were found
    bool can_end = false;
    uint32_t work = 0;                     // of finding it, once the byte before it was read
    uint64_t walk = 0;                     // the last one that came here
    std::array<uint64_t, 4> charged = {};  // classes of bytes that it read from here
    std::shared_ptr<const AllowedTokens> allowed;
  };
  struct StacksHash {
    size_t operator()(const std::vector<StackId>& stacks) const;
  };

  void divide_bytes();
  void forget();
  StateId keep_only(StateId state);
  bool keeps_too_much() const;
  StackId stack(NodeId node, StackId below);
  size_t slot_of(NodeId node, StackId below) const;
  bool first_time(StackId stack);
  StateId state_of(const std::vector<StackId>& stacks);
  StateId add_state(State state);
  StateId step(StateId from, uint8_t byte);
  StateId locate(Cursor& cursor);
  StateId run(StateId from, std::string_view bytes, uint64_t* work);
  enum class Walk { kDone, kTooMuchWork, kTooMuchKept };
  Walk walk(StateId from, AllowedTokens* allowed);
  uint64_t charge(StateId from, uint8_t byte, StateId to, size_t* states);

  const Automaton automaton_;
  const std::shared_ptr<const TokenTrie> trie_;
  // Bytes that no edge tells apart are one class.
  std::array<uint8_t, 256> classes_;
  size_t num_classes_ = 0;

  uint64_t generation_ = 0, walk_ = 0;
  std::vector<Stack> stacks_;
  std::vector<StackId> slots_;   // a hash table of stacks_: open addressing, at most half full
  std::vector<uint32_t> marks_;  // by stack: the last search that found it
  uint32_t search_ = 0;
  std::vector<State> states_;
  std::vector<StateId> next_;                                                // [state][class]
  std::unordered_map<std::vector<StackId>, StateId, StacksHash> state_ids_;  // by the stacks before closing
  size_t units_of_states_ = 0, sets_ = 0;
  std::vector<StackId> reached_, open_;  // of the step at hand
};

}  // namespace lowkey::grammar
