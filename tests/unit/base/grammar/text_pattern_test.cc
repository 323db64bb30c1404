#include "base/grammar/text_pattern.h"

#include <gtest/gtest.h>

#include <random>
#include <regex>

#include "tests/unit/base/grammar/byte_matcher.h"

namespace lowkey::grammar {
namespace {

// The texts of a pattern, between quotes.
ByteMatcher matcher_of(const TextPattern& pattern, LengthLimits lengths = {}) {
  AutomatonBuilder builder;
  const auto rule = builder.add_rule();
  const NodeId begin = builder.literal(rule.start, "\""), end = builder.add_node();
  builder.literal(end, "\"", rule.end);
  write_text(pattern, lengths, builder, begin, end);
  auto automaton = builder.finish(rule.id);
  EXPECT_TRUE(automaton.ok()) << automaton.error().message;
  return ByteMatcher(std::move(*automaton));
}

std::string random_pattern(std::mt19937& random, int depth) {
  static const char* kAtoms[] = {"a", "b", "[ab]", "[^a]", "\\d", "\\w", ".", "c", "[a-c1]", "\\s", "1"};
  std::string out;
  for (int pieces = 1 + random() % 3; pieces > 0; --pieces) {
    std::string piece = kAtoms[random() % std::size(kAtoms)];
    if (depth > 0 && random() % 4 == 0) piece = "(" + random_pattern(random, depth - 1) + ")";
    static const char* kTimes[] = {"", "", "", "*", "+", "?", "{2}", "{1,2}", "{0,1}", "{2,}", "*?"};
    out += piece + kTimes[random() % std::size(kTimes)];
  }
  if (depth > 0 && random() % 3 == 0) out += "|" + random_pattern(random, depth - 1);
  return out;
}

// std::regex searches as JSON schema does; on ASCII both mean the same.
TEST(TextPattern, AgreesWithTheStandardLibrarysExpressions) {
  std::mt19937 random(1);
  int matches = 0, misses = 0;
  for (int round = 0; round < 300; ++round) {
    std::string pattern = random_pattern(random, 2);
    if (pattern.find('|') == std::string::npos) {
      if (random() % 2) pattern = "^" + pattern;
      if (random() % 2) pattern += "$";
    }
    const auto ours = TextPattern::regex(pattern);
    ASSERT_TRUE(ours.ok()) << pattern << ": " << ours.error().message;
    // Breadth first: the usual way takes forever over nested repetitions.
    const std::regex theirs(pattern, std::regex::ECMAScript | std::regex_constants::__polynomial);
    ByteMatcher matcher = matcher_of(*ours);
    for (int i = 0; i < 40; ++i) {
      std::string text;
      for (int length = random() % 7; length > 0; --length) text += "aabbc1_ "[random() % 8];
      const bool expected = std::regex_search(text, theirs);
      EXPECT_EQ(matcher.accepts('"' + text + '"'), expected) << pattern << " on '" << text << "'";
      ++(expected ? matches : misses);
    }
  }
  EXPECT_GT(matches, 1000);
  EXPECT_GT(misses, 1000);
}

TEST(TextPattern, LengthsCountCharacters) {
  ByteMatcher matcher = matcher_of(*TextPattern::regex("^(é|🙂|a)*$"), {.least = 2, .most = 3});
  EXPECT_FALSE(matcher.accepts("\"é\""));
  EXPECT_TRUE(matcher.accepts("\"éa\""));
  EXPECT_TRUE(matcher.accepts("\"é🙂a\""));
  EXPECT_FALSE(matcher.accepts("\"aaaa\""));
  ByteMatcher open = matcher_of(*TextPattern::regex("b"), {.least = 3});
  EXPECT_FALSE(open.accepts("\"ab\""));
  EXPECT_TRUE(open.accepts("\"aaaaab\""));
  EXPECT_FALSE(open.accepts("\"aaaaa\""));
}

TEST(TextPattern, CharactersThatJsonEscapes) {
  ByteMatcher matcher = matcher_of(*TextPattern::regex("^[\\n\"\\\\\\x01-\\x02x]$"));
  for (const char* text : {R"("\n")", R"("\"")", R"("\\")", R"("\u0001")", R"("x")"})
    EXPECT_TRUE(matcher.accepts(text)) << text;
  for (const char* text : {"\"\n\"", R"("\t")", R"("\u0078")", R"("\u0003")", R"("n")"})
    EXPECT_FALSE(matcher.accepts(text)) << text;
}

TEST(TextPattern, AllBut) {
  const std::vector<std::string> names{"a", "ab", "größe", "x\"y"};
  ByteMatcher matcher = matcher_of(TextPattern::all_but(names));
  for (const std::string& name : names) EXPECT_FALSE(matcher.accepts(json_string(name))) << name;
  for (const char* other : {"", "b", "abc", "gr", "größ", "größen", "x", "x\"", "x\"yz", "A", "🙂"})
    EXPECT_TRUE(matcher.accepts(json_string(other))) << other;
  EXPECT_FALSE(matcher.begins("\"\xFF"));
  EXPECT_FALSE(matcher.begins("\"gr\xC3\x28")) << "a broken character";
}

TEST(TextPattern, RefusesWhatItCannotDo) {
  for (const char* pattern :
       {"(?=a)", "(?<n>a)", "\\bword", "a(", "a)", "[a", "*a", "a**", "a{2", "a{3,2}", "a^b", "a$b", "\\1",
        "\\p{L}", "a{2000}", "\\", "[b-a]", "\\uD800", "(a{1000}){1000}"}) {
    const auto result = TextPattern::regex(pattern);
    ASSERT_FALSE(result.ok()) << pattern;
    EXPECT_FALSE(result.error().message.empty());
  }
}

}  // namespace
}  // namespace lowkey::grammar
