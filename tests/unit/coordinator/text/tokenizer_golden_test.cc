// Ids and texts against the `tokenizers` package, for one tokenizer of every kind (see make_golden.py).
#include <gtest/gtest.h>

#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "golden.h"
#include "many_strings.h"

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

void expect_same(const std::vector<uint32_t>& sums, const boost::json::array& expected,
                 const std::vector<std::string>& texts) {
  ASSERT_EQ(sums.size(), expected.size());
  int wrong = 0;
  for (size_t i = 0; i < sums.size() && wrong < 5; ++i) {
    if (sums[i] == static_cast<uint32_t>(expected[i].as_int64())) continue;
    ++wrong;
    ADD_FAILURE() << "one of the ten strings from " << 10 * i << ", which begin with '" << texts[10 * i]
                  << "'";
  }
}

TEST_P(TokenizerGolden, EncodesTenThousandStringsAsTheReference) {
  const auto texts = many_strings();
  expect_same(checksums(texts, [&](const std::string& text) { return tokenizer_->encode(text, false); }),
              golden("many"), texts);
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerGolden,
                         testing::Values("demo", "stories260K", "gpt2", "roberta", "llama3", "qwen2",
                                         "smollm", "falcon", "tekken", "llama2", "phi3", "mistral",
                                         "metaspace", "gemma"),
                         [](const auto& info) { return info.param; });

// SentencePiece's own files, against its package.
class SentencePieceGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto bytes = read_file(kGoldenDir / GetParam() / "tokenizer.model");
    auto loaded = Tokenizer::from_sentencepiece(bytes, "", GetParam());
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    tokenizer_ = std::move(loaded).value();
    golden_ = read_golden(kGoldenDir / GetParam() / "expected.json");
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  boost::json::value golden_;
};

TEST_P(SentencePieceGolden, EncodesAndDecodesAsThePackage) {
  const auto texts = golden_strings();
  const auto& ids = golden_.at("ids").as_array();
  const auto& decoded = golden_.at("decoded").as_array();
  size_t compared = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (ids[i].is_null()) continue;
    ++compared;
    EXPECT_EQ(tokenizer_->encode(texts[i], false), as_ids(ids[i]))
        << "string " << i << ": '" << texts[i] << "'";
    if (!decoded[i].is_null()) {
      EXPECT_EQ(tokenizer_->decode(as_ids(ids[i]), false), as_string(decoded[i])) << "string " << i;
    }
  }
  EXPECT_GT(compared, 450u);
  for (const auto& entry : golden_.at("noise").as_array())
    EXPECT_EQ(tokenizer_->decode(as_ids(entry.at(0)), false), as_string(entry.at(1)));
}

TEST_P(SentencePieceGolden, EncodesTenThousandStringsAsThePackage) {
  const auto texts = many_strings();
  const auto encode = [&](const std::string& text) {
    for (const char* control : {"<s>", "</s>", "<unk>", "<bos>", "<eos>", "<pad>"})
      if (text.find(control) != std::string::npos) return std::vector<int32_t>();
    return tokenizer_->encode(text, false);
  };
  expect_same(checksums(texts, encode), golden_.at("many").as_array(), texts);
}

TEST(SentencePiece, BeginsWithBosAndFindsControlPieces) {
  const auto bytes = read_file(kGoldenDir / "spm_llama" / "tokenizer.model");
  const auto load = [&](const char* config) {
    return std::move(Tokenizer::from_sentencepiece(bytes, config, "m")).value();
  };
  const auto with = load(R"({"bos_token":"<s>","eos_token":"</s>"})");
  EXPECT_EQ(with->encode("a", true).front(), 1);
  EXPECT_EQ(with->encode("</s>", false), std::vector<int32_t>{2});
  EXPECT_EQ(with->eos(), 2);
  EXPECT_TRUE(with->is_special(1));
  const auto without =
      load(R"({"add_bos_token":false,"added_tokens_decoder":{"800":{"content":"<|end|>","special":true}}})");
  EXPECT_EQ(without->encode("a", true), without->encode("a", false));
  EXPECT_EQ(without->encode("<|end|>", false), std::vector<int32_t>{800});
}

TEST(SentencePiece, WhatIsMalformedIsRefusedByName) {
  const auto bytes = read_file(kGoldenDir / "spm_llama" / "tokenizer.model");
  for (const size_t size : {size_t{0}, size_t{1}, size_t{100}, bytes.size() - 1}) {
    const auto result = Tokenizer::from_sentencepiece(bytes.substr(0, size), "", "m");
    ASSERT_FALSE(result.ok()) << size;
    EXPECT_EQ(result.error().code, Code::kBadInput);
    EXPECT_EQ(result.error().message.find("m/tokenizer.model: "), 0u) << result.error().message;
  }
  // pieces { piece: "\xFF" }, trainer_spec { model_type: BPE }
  EXPECT_FALSE(
      Tokenizer::from_sentencepiece(std::string("\x0A\x03\x0A\x01\xFF\x12\x02\x18\x02", 9), "", "m").ok());
  // trainer_spec { model_type: UNIGRAM }, pieces { piece: "a" }
  const auto unigram = Tokenizer::from_sentencepiece(std::string("\x0A\x03\x0A\x01"
                                                                 "a\x12\x02\x18\x01",
                                                                 9),
                                                     "", "m");
  ASSERT_FALSE(unigram.ok());
  EXPECT_NE(unigram.error().message.find("UNIGRAM"), std::string::npos) << unigram.error().message;
}

INSTANTIATE_TEST_SUITE_P(Kinds, SentencePieceGolden, testing::Values("spm_llama", "spm_gemma", "spm_plain"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lowkey::coordinator
