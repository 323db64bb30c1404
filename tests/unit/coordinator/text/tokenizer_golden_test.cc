// Ids and texts against the `tokenizers` package, for one tokenizer of every kind (see make_golden.py).
#include <gtest/gtest.h>

#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "golden.h"

namespace lowkey::coordinator {
namespace {

const std::filesystem::path kStories =
    std::filesystem::path(LOWKEY_SOURCE_DIR) / "../shared/data/models/stories260K-hf";

std::filesystem::path folder_of(const std::string& kind) {
  if (kind == "demo") return std::filesystem::path(LOWKEY_SOURCE_DIR) / "deploy/demo-model";
  if (kind == "stories260K") return kStories;
  return kGoldenDir / kind;
}

class TokenizerGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(folder_of(GetParam()) / "tokenizer.json")) {
      GTEST_SKIP() << "no tokenizer at " << folder_of(GetParam());
    }
    auto loaded = Tokenizer::load(folder_of(GetParam()));
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    tokenizer_ = std::move(loaded).value();
    texts_ = golden_strings();
    golden_ = read_golden(kGoldenDir / GetParam() / "expected.json");
    ASSERT_GE(texts_.size(), 500u);
  }

  const boost::json::array& golden(const char* field) const { return golden_.at(field).as_array(); }

  // A golden text is null where it equals `otherwise`.
  static std::string text_or(const boost::json::value& value, const std::string& otherwise) {
    return value.is_null() ? otherwise : as_string(value);
  }

  std::string stream(const std::vector<int32_t>& ids, bool skip) const {
    StreamDetokenizer detokenizer(*tokenizer_, skip);
    std::string out;
    for (const int32_t id : ids) {
      const std::string piece = detokenizer.push(id);
      EXPECT_TRUE(is_valid_utf8(piece));
      out += piece;
    }
    return out + detokenizer.flush();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<std::string> texts_;
  boost::json::value golden_;
};

TEST_P(TokenizerGolden, EncodesAsTheReference) {
  for (size_t i = 0; i < texts_.size(); ++i) {
    EXPECT_EQ(tokenizer_->encode(texts_[i], false), as_ids(golden("ids")[i]))
        << "string " << i << ": " << texts_[i];
  }
}

TEST_P(TokenizerGolden, AddsTheSpecialTokensOfTheReference) {
  const auto& special = golden("special");
  for (size_t i = 0; i < special.size(); ++i) {
    EXPECT_EQ(tokenizer_->encode(texts_[i], true), as_ids(special[i])) << texts_[i];
  }
}

TEST_P(TokenizerGolden, DecodesAsTheReference) {
  for (size_t i = 0; i < texts_.size(); ++i) {
    const auto ids = as_ids(golden("ids")[i]);
    const std::string decoded = text_or(golden("decoded")[i], texts_[i]);
    EXPECT_EQ(tokenizer_->decode(ids, false), decoded) << "string " << i;
    EXPECT_EQ(tokenizer_->decode(ids, true), text_or(golden("skipped")[i], decoded)) << "string " << i;
  }
}

TEST_P(TokenizerGolden, DecodesRandomIdsAsTheReference) {
  for (const auto& entry : golden("noise")) {
    EXPECT_EQ(tokenizer_->decode(as_ids(entry.at(0)), false), as_string(entry.at(1)));
  }
}

TEST_P(TokenizerGolden, StreamedPiecesMakeTheDecodedText) {
  for (const auto& value : golden("ids")) {
    const auto ids = as_ids(value);
    EXPECT_EQ(stream(ids, false), tokenizer_->decode(ids, false));
    EXPECT_EQ(stream(ids, true), tokenizer_->decode(ids, true));
  }
}

TEST_P(TokenizerGolden, TheSecondEncodingComesFromTheCacheAndIsTheSame) {
  for (const std::string& text : texts_) {
    const auto first = tokenizer_->encode(text, true);
    EXPECT_EQ(tokenizer_->encode(text, true), first);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerGolden,
                         testing::Values("demo", "stories260K", "gpt2", "roberta", "llama3", "qwen2",
                                         "smollm", "falcon", "llama2", "mistral", "metaspace", "gemma"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lowkey::coordinator
