// Sets of allowed tokens against trying every token.
#include "base/grammar/token_grammar.h"

#include <gtest/gtest.h>

#include <random>

#include "base/grammar/json_schema.h"

namespace lowkey::grammar {
namespace {

const char* const kSchemas[] = {
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":6},"n":{"type":"integer","minimum":-5,"maximum":120},
        "tags":{"type":"array","items":{"enum":["a","ab","b c"]},"maxItems":3}},"required":["name"]})",
    R"({"type":"object"})",
    R"({"anyOf":[{"type":"array","items":{"$ref":"#"}},{"type":"string","pattern":"^(ab|a)*c$"},{"type":"number"}]})",
    R"({"type":"object","properties":{"k":{"type":"boolean"}},"additionalProperties":{"type":"null"}})",
};

// Pieces of JSON, whole and broken: several characters, parts of characters, the same text twice.
std::vector<std::string> vocabulary(std::mt19937& random) {
  std::vector<std::string> texts{
      "",     "{",    "}",     "[",        "]",        "\"",   ",",   ":",     "\":",  "\",\"",     "{\"",
      "\"}",  " ",    "\n",    "\n  ",     "true",     "null", "nu",  "ll",    "name", "\"name\":", "tags",
      "k\":", "-",    "1",     "12",       "0",        "a",    "b",   "ab",    "abc",  "b c",       "c\"",
      "é",    "\xC3", "\xA9",  "\xF0\x9F", "\x99\x82", "\\",   "\\n", "\\u00", "e9",   "[]",        "{}",
      "]]",   "[[",   "\"a\"", "\"ab\"",   "\",",      "\"]",  "a",   "{"};
  const std::string letters = "{}[]\",: \nabcnulltrue0123-.eE\\";
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (int length = 1 + random() % 4; length > 0; --length) text += letters[random() % letters.size()];
    texts.push_back(text);
  }
  for (int byte = 0; byte < 256; ++byte) texts.emplace_back(1, static_cast<char>(byte));
  return texts;
}

TEST(TokenGrammar, AllowsExactlyTheTokensThatFit) {
  std::mt19937 random(5);
  const auto texts = vocabulary(random);
  const auto trie = std::make_shared<const TokenTrie>(texts);
  for (const char* schema : kSchemas) {
    auto automaton = compile_json_schema(schema);
    ASSERT_TRUE(automaton.ok()) << automaton.error().message;
    TokenGrammar grammar(std::move(*automaton), trie);
    int complete = 0;
    for (int walk = 0; walk < 25; ++walk) {
      auto cursor = grammar.start();
      for (int step = 0; step < 40; ++step) {
        bool computed = false;
        const auto allowed = grammar.allowed(cursor, &computed);
        ASSERT_NE(allowed, nullptr);
        std::vector<int32_t> fitting;
        for (size_t id = 0; id < texts.size(); ++id) {
          auto copy = cursor;
          const bool fits = !texts[id].empty() && grammar.advance(copy, texts[id]);
          ASSERT_EQ(allowed->tokens.contains(static_cast<int32_t>(id)), fits)
              << "'" << texts[id] << "' after " << cursor.text();
          if (fits) fitting.push_back(static_cast<int32_t>(id));
        }
        EXPECT_EQ(allowed->can_end, grammar.can_end(cursor));
        EXPECT_TRUE(!fitting.empty() || allowed->can_end) << "a dead end: " << cursor.text();
        if (fitting.empty()) break;
        ASSERT_TRUE(grammar.advance(cursor, texts[fitting[random() % fitting.size()]]));
        complete += grammar.can_end(cursor);
      }
    }
    EXPECT_GT(complete, 0) << schema;
  }
}

// What is kept is forgotten when it is too much; that changes no answer.
TEST(TokenGrammar, ForgettingChangesNothing) {
  std::mt19937 random(6);
  const auto texts = vocabulary(random);
  const auto trie = std::make_shared<const TokenTrie>(texts);
  const char* schema =
      R"({"type":"array","items":{"type":"array","items":{"type":"string","maxLength":2000}}})";
  TokenGrammar grammar(std::move(*compile_json_schema(schema)), trie);
  auto cursor = grammar.start();
  ASSERT_TRUE(grammar.advance(cursor, "[[\""));
  int computations = 0;
  for (int i = 0; i < 1990; ++i) {
    bool computed = false;
    const auto allowed = grammar.allowed(cursor, &computed);
    computations += computed;
    ASSERT_TRUE(allowed->tokens.contains(27)) << i;  // "a"
    ASSERT_TRUE(grammar.advance(cursor, "a"));
  }
  EXPECT_EQ(computations, 1990) << "each length is a state of its own";
  auto second = grammar.start();
  ASSERT_TRUE(grammar.advance(second, cursor.text()));
  bool computed = false;
  EXPECT_EQ(grammar.allowed(second, &computed)->tokens.words,
            grammar.allowed(cursor, &computed)->tokens.words);
}

// Alternatives that read alike, one in the other, would need a stack for each way through them.
TEST(TokenGrammar, AmbiguityIsBounded) {
  std::mt19937 random(7);
  const auto trie = std::make_shared<const TokenTrie>(vocabulary(random));
  const char* schema =
      R"({"anyOf":[{"type":"array","items":{"$ref":"#"}},{"type":"array","items":{"$ref":"#"},"maxItems":9},
                          {"type":"null"}]})";
  TokenGrammar grammar(std::move(*compile_json_schema(schema)), trie);
  auto cursor = grammar.start();
  ASSERT_TRUE(grammar.advance(cursor, std::string(40, '[')));
  bool computed = false;
  ASSERT_NE(grammar.allowed(cursor, &computed), nullptr);
  ASSERT_TRUE(grammar.advance(cursor, "null" + std::string(40, ']')));
  EXPECT_TRUE(grammar.can_end(cursor));
}

TEST(TokenTrie, VisitsEveryTextOnce) {
  const std::vector<std::string> texts{"b", "", "abc", "a", "ab", "a", "\xFF", std::string(2000, 'x')};
  const TokenTrie trie(texts);
  std::vector<int32_t> seen;
  for (const auto& node : trie.nodes())
    for (const int32_t id : trie.tokens_at(node)) seen.push_back(id);
  EXPECT_EQ(seen, (std::vector<int32_t>{3, 5, 4, 2, 0, 6}));
  EXPECT_EQ(trie.nodes().size(), 5u);
  EXPECT_EQ(trie.nodes()[0].behind, 3u);
}

}  // namespace
}  // namespace lowkey::grammar
