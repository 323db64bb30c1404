// Sets of texts, as automata over characters: regular expressions, lengths, all texts but some. They become
// bytes of a JSON string, each character written in one way: as itself where JSON lets it, else as its
// shortest escape.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/grammar/automaton.h"
#include "base/result.h"

namespace lowkey::grammar {

struct TextPattern {
  struct Range {
    char32_t low, high;  // both included
    int to;
  };
  struct State {
    std::vector<Range> ranges;
    std::vector<int> empty;
  };
  std::vector<State> states;
  int start = 0, end = 0;

  int add_state() {
    states.emplace_back();
    return static_cast<int>(states.size()) - 1;
  }

  static constexpr size_t kMaxStates = 20000;
  static constexpr int kMaxRepetitions = 1000;
  static constexpr char32_t kLastCharacter = 0x10FFFF;

  // A regular expression as JSON schema means it: found anywhere in the text unless it has anchors.
  // Supported: alternatives, groups, classes, . \d \w \s and their negations, \t \n \r \f \v \xHH \uHHHH,
  // quantifiers, ^ at the beginning and $ at the end of an alternative. \d, \w and \s stand for their ASCII
  // members, negations of them for the other printable ASCII characters. Anything else is refused by name.
  static Result<TextPattern> regex(std::string_view pattern);
  // Any text that is none of these. They are well-formed UTF-8.
  static TextPattern all_but(std::span<const std::string> texts);
};

struct LengthLimits {
  int least = 0;
  int most = -1;  // below 0: none
};

// The text's bytes in a JSON string, without the quotes, from node to node.
void write_text(const TextPattern& pattern, LengthLimits lengths, AutomatonBuilder& builder, NodeId from,
                NodeId to);

// A string in quotes, escaped as write_text() does.
std::string json_string(std::string_view text);

}  // namespace lowkey::grammar
