#include "coordinator/text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "golden.h"

namespace lowkey::coordinator {
namespace {

std::unique_ptr<Tokenizer> load(const char* kind) {
  auto loaded = Tokenizer::load(kGoldenDir / kind);
  if (!loaded.ok()) throw std::runtime_error(loaded.error().message);
  return std::move(loaded).value();
}

std::vector<std::string> pieces_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                                   TextStart start) {
  StreamDetokenizer detokenizer(tokenizer, true, start);
  std::vector<std::string> pieces;
  for (const int32_t id : ids) pieces.push_back(detokenizer.push(id));
  pieces.push_back(detokenizer.flush());
  return pieces;
}

TEST(StreamDetokenizer, HoldsBackHalfACharacter) {
  for (const char* kind : {"gpt2", "llama2"}) {
    const auto tokenizer = load(kind);
    const auto pieces = pieces_of(*tokenizer, tokenizer->encode("😀", false), TextStart::kBeginning);
    size_t with_text = 0;
    for (const auto& piece : pieces) with_text += piece.empty() ? 0 : 1;
    ASSERT_GT(pieces.size(), 2u) << "this test needs a character of several tokens";
    EXPECT_EQ(with_text, 1u);
    EXPECT_EQ(pieces[pieces.size() - 2], "😀");
  }
}

TEST(StreamDetokenizer, FlushReplacesAnIncompleteCharacter) {
  for (const char* kind : {"gpt2", "llama2"}) {
    const auto tokenizer = load(kind);
    auto ids = tokenizer->encode("x😀", false);
    ids.pop_back();
    StreamDetokenizer detokenizer(*tokenizer);
    std::string text;
    for (const int32_t id : ids) text += detokenizer.push(id);
    EXPECT_EQ(text, "x");
    EXPECT_EQ(text + detokenizer.flush(), tokenizer->decode(ids, true));
    EXPECT_EQ(detokenizer.flush(), "");
  }
}

TEST(StreamDetokenizer, KeepsTheFirstSpaceOnlyBehindAPrompt) {
  const auto tokenizer = load("llama2");
  const auto ids = tokenizer->encode("hello", false);  // SentencePiece writes a space before it
  const auto text = [&](TextStart start) {
    std::string out;
    for (const auto& piece : pieces_of(*tokenizer, ids, start)) out += piece;
    return out;
  };
  EXPECT_EQ(text(TextStart::kBeginning), "hello");
  EXPECT_EQ(text(TextStart::kAfterPrompt), " hello");
}

TEST(StreamDetokenizer, IsAlwaysWellFormedOnRandomIds) {
  std::mt19937 random(11);
  for (const char* kind : {"gpt2", "llama3", "llama2", "metaspace", "gemma"}) {
    const auto tokenizer = load(kind);
    for (int round = 0; round < 300; ++round) {
      std::vector<int32_t> ids(20);
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % 320) - 5;
      std::string text;
      for (const auto& piece : pieces_of(*tokenizer, ids, TextStart::kBeginning)) {
        ASSERT_TRUE(is_valid_utf8(piece));
        text += piece;
      }
      // A byte-fallback vocabulary may differ in U+FFFD only (see the header).
      const std::string whole = tokenizer->decode(ids, true);
      if (std::string(kind) == "gpt2" || std::string(kind) == "llama3" ||
          whole.find("\xEF\xBF\xBD") == whole.npos) {
        ASSERT_EQ(text, whole);
      }
    }
  }
}

}  // namespace
}  // namespace lowkey::coordinator
