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

// All texts of some letters up to a length.
std::vector<std::string> all_texts(std::string_view letters, size_t length) {
  std::vector<std::string> texts{"\""};
  for (size_t begin = 0, size = 1; size <= length; ++size) {
    const size_t end = texts.size();
    for (const char letter : letters) {
      if (size == 1) texts.emplace_back(1, letter);
      for (size_t i = begin; size > 1 && i < end; ++i) texts.push_back(texts[i] + letter);
    }
    begin = end;
  }
  return texts;
}

TokenGrammar grammar_of(const char* schema, const std::vector<std::string>& texts) {
  return {std::move(compile_json_schema(schema)).value(), std::make_shared<const TokenTrie>(texts)};
}

// Every place of an "a" in the last 120 characters counts, so each of 4,094 tokens leads to a state of its
// own.
TEST(TokenGrammar, WorkIsBounded) {
  const char* schema = R"({"type":"string","pattern":"^.*a.{120}$"})";
  const auto texts = all_texts("ab", 11);
  ASSERT_EQ(texts.size(), 4095u);
  TokenGrammar grammar = grammar_of(schema, texts);
  auto cursor = grammar.start();
  bool computed = false;
  ASSERT_NE(grammar.allowed(cursor, &computed), nullptr);
  ASSERT_TRUE(grammar.advance(cursor, "\"ab"));
  EXPECT_NE(grammar.allowed(cursor, &computed), nullptr) << "few places, little work";
  ASSERT_TRUE(grammar.advance(cursor, std::string(121, 'a')));
  EXPECT_EQ(grammar.allowed(cursor, &computed), nullptr);
  EXPECT_TRUE(grammar.advance(cursor, "\""));
  EXPECT_TRUE(grammar.can_end(cursor));
}

// Whatever was asked for before, and however often what was kept was forgotten.
TEST(TokenGrammar, WhatIsTooMuchDependsOnTheTextAlone) {
  const char* schema = R"({"type":"string","pattern":"^(.*a.{120}|.*b.{60})$"})";
  const auto texts = all_texts("ab", 10);
  TokenGrammar used = grammar_of(schema, texts);
  std::mt19937 random(9);
  int refused = 0;
  for (int i = 0; i < 8; ++i) {
    std::string text = "\"";
    for (int length = static_cast<int>(random() % 160); length > 0; --length) text += "ab"[random() % 2];
    TokenGrammar fresh = grammar_of(schema, texts);
    auto first = fresh.start(), second = used.start();
    ASSERT_TRUE(fresh.advance(first, text));
    for (size_t at = 0; at < text.size(); at += 40) {
      bool computed = false;
      ASSERT_TRUE(used.advance(second, text.substr(at, 40)));
      (void)used.allowed(second, &computed);
      EXPECT_LE(used.units(), TokenGrammar::kMaxUnitsOfAWalk + 100000);
    }
    bool computed = false;
    const auto a = fresh.allowed(first, &computed), b = used.allowed(second, &computed);
    ASSERT_EQ(a == nullptr, b == nullptr) << text.size();
    if (a) {
      EXPECT_EQ(a->tokens.words, b->tokens.words);
    }
    refused += a == nullptr;
  }
  EXPECT_GT(refused, 0);
  EXPECT_LT(refused, 8);
}

TEST(TokenGrammar, NestingAndLongTextsKeepABound) {
  std::mt19937 random(8);
  const auto texts = vocabulary(random);
  TokenGrammar grammar = grammar_of("true", texts);
  auto deep = grammar.start();
  EXPECT_TRUE(grammar.advance(deep, std::string(100, '[')));
  EXPECT_FALSE(grammar.advance(deep, std::string(5000, '[')));
  auto wide = grammar.start(), other = grammar.start();
  ASSERT_TRUE(grammar.advance(wide, "["));
  for (int i = 0; i < 3000; ++i) ASSERT_TRUE(grammar.advance(wide, "[\"abc\", 12],"));
  bool computed = false;
  ASSERT_NE(grammar.allowed(other, &computed), nullptr);
  const auto allowed = grammar.allowed(wide, &computed);
  ASSERT_NE(allowed, nullptr);
  EXPECT_TRUE(allowed->tokens.contains(1));  // "{"
  EXPECT_LE(grammar.units(), TokenGrammar::kMaxUnitsOfAWalk);
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
