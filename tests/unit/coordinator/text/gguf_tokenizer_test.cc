// Tokenizers out of GGUF metadata (tests/golden/gguf/make_golden.py, written by the gguf package) against
// what their tokenizer.json and tokenizer.model give; and against llama.cpp's own vocabularies and expected
// ids, where the environment names its folder of models.
#include <gtest/gtest.h>

#include <cstdlib>
#include <sstream>

#include "base/gguf/gguf_file.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "golden.h"
#include "many_strings.h"

namespace lowkey::coordinator {
namespace {

const std::filesystem::path kGgufDir = std::filesystem::path(LOWKEY_SOURCE_DIR) / "tests/golden/gguf";

std::filesystem::path file_of(const std::string& kind) {
  return kGgufDir / ("tokenizer_" + kind + ".gguf");
}

std::unique_ptr<Tokenizer> load(const std::filesystem::path& model) {
  auto loaded = Tokenizer::load(model);
  if (!loaded.ok()) throw std::runtime_error(loaded.error().message);
  return std::move(loaded).value();
}

class GgufTokenizer : public testing::TestWithParam<std::string> {};

TEST_P(GgufTokenizer, GivesTheIdsAndTextsOfItsTwin) {
  const auto tokenizer = load(file_of(GetParam())), twin = load(kGoldenDir / GetParam());
  ASSERT_EQ(tokenizer->vocab_size(), twin->vocab_size());
  auto texts = golden_strings();
  const auto many = many_strings();
  texts.insert(texts.end(), many.begin(), many.end());
  ASSERT_GE(texts.size(), 10500u);
  int wrong = 0;
  for (const std::string& text : texts) {
    const auto ids = twin->encode(text, false);
    if (tokenizer->encode(text, false) != ids || tokenizer->decode(ids, true) != twin->decode(ids, true)) {
      ADD_FAILURE() << "'" << text << "'";
      if (++wrong == 5) break;
    }
  }
  for (int32_t id = 0; id < twin->vocab_size(); ++id) {
    EXPECT_EQ(tokenizer->token_bytes(id), twin->token_bytes(id)) << id;
    EXPECT_EQ(tokenizer->is_special(id), twin->is_special(id)) << id;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, GgufTokenizer,
                         testing::Values("gpt2", "llama3", "qwen2", "smollm", "tekken", "spm_llama",
                                         "spm_gemma", "spm_plain"),
                         [](const auto& info) { return info.param; });

TEST(GgufTokenizers, PutBosAroundATextAsTheFileSays) {
  const auto llama3 = load(file_of("llama3")), qwen2 = load(file_of("qwen2")),
             spm = load(file_of("spm_llama")), plain = load(file_of("spm_plain"));
  const auto first = [](const Tokenizer& tokenizer) { return tokenizer.encode("a", true).front(); };
  EXPECT_EQ(first(*llama3), llama3->id_of("<|begin_of_text|>"));
  EXPECT_EQ(llama3->bos_text(), "<|begin_of_text|>");
  EXPECT_EQ(qwen2->encode("a", true), qwen2->encode("a", false));
  EXPECT_EQ(qwen2->bos_text(), "");
  EXPECT_EQ(qwen2->eos(), qwen2->id_of("<|im_end|>"));
  EXPECT_EQ(first(*spm), 1) << "the file names none: llama.cpp's defaults";
  EXPECT_EQ(spm->eos(), 2);
  EXPECT_EQ(plain->encode("a", true), plain->encode("a", false));
}

TEST(GgufTokenizers, BringTheirChatTemplate) {
  const auto chat = ChatTemplate::load(file_of("llama3"));
  ASSERT_TRUE(chat.ok() && *chat) << chat.error().message;
  const std::vector<ChatMessage> messages = {{.role = "user", .content = "hi"}};
  EXPECT_EQ((*chat)->render(messages, {}, "<s>", "</s>").value(), "<s>[hi]</s>");
  const auto none = ChatTemplate::load(file_of("spm_llama"));
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
}

std::string refusal(const std::function<void(GgufHeader&)>& change, const char* kind = "gpt2") {
  auto file = GgufFile::open(file_of(kind));
  change(file->header);
  const auto result = Tokenizer::from_gguf(file->header, "m.gguf");
  if (result.ok()) return "accepted";
  EXPECT_EQ(result.error().code, Code::kBadInput);
  return result.error().message;
}

TEST(GgufTokenizers, WhatIsNotSupportedIsRefusedByName) {
  const auto set = [](const char* key, GgufValue value) {
    return [=](GgufHeader& header) { header.metadata[std::string("tokenizer.ggml.") + key] = value; };
  };
  EXPECT_EQ(refusal(set("model", std::string("bert"))),
            "m.gguf: 'tokenizer.ggml.model': expected one of [llama, gpt2], found 'bert'");
  EXPECT_EQ(
      refusal(set("pre", std::string("viking"))).find("m.gguf: 'tokenizer.ggml.pre': expected one of ["), 0u);
  EXPECT_EQ(refusal(set("tokens", false)),
            "m.gguf: 'tokenizer.ggml.tokens': expected 1 to 4194303 texts, found 0");
  EXPECT_EQ(refusal(set("merges", false)),
            "m.gguf: 'tokenizer.ggml.merges': expected an array of texts, found none");
  EXPECT_EQ(refusal(set("merges", std::vector<std::string>{"a"})),
            "m.gguf: merge 0: expected \"left right\", found 'a'");
  EXPECT_EQ(refusal(set("token_type", std::vector<int64_t>{1})),
            "m.gguf: 'tokenizer.ggml.token_type': expected 700 numbers, found 1");
  EXPECT_EQ(refusal(set("eos_token_id", int64_t{701})),
            "m.gguf: 'tokenizer.ggml.eos_token_id': expected a token id from 0 to 699, found 701");
  EXPECT_EQ(refusal(set("scores", false), "spm_llama"),
            "m.gguf: 'tokenizer.ggml.scores': expected 800 numbers, found none");
  EXPECT_NE(refusal([](GgufHeader& header) {
              std::get<std::vector<std::string>>(header.metadata["tokenizer.ggml.tokens"])[5] = "\xff";
            }).find("expected UTF-8, found other bytes in token 5"),
            std::string::npos);
  EXPECT_NE(refusal([](GgufHeader& header) {
              auto& tokens = std::get<std::vector<std::string>>(header.metadata["tokenizer.ggml.tokens"]);
              tokens[5] = tokens[6];
            }).find("is there twice"),
            std::string::npos);
}

// ggml-vocab-NAME.gguf with .inp (texts, between lines of __ggml_vocab_test__) and .out (their ids, a line
// each).
class LlamaCppVocabulary : public testing::TestWithParam<std::string> {};

TEST_P(LlamaCppVocabulary, GivesTheIdsThatLlamaCppExpects) {
  const char* folder = std::getenv("LLAMA_CPP_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "LLAMA_CPP_MODELS does not name llama.cpp's folder `models`";
  const std::string base = (std::filesystem::path(folder) / ("ggml-vocab-" + GetParam() + ".gguf")).string();
  if (!std::filesystem::exists(base + ".inp")) GTEST_SKIP() << base << ".inp is absent";
  const auto tokenizer = load(base);
  const std::string inputs = read_file(base + ".inp");
  std::istringstream outputs(read_file(base + ".out"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  size_t compared = 0;
  for (size_t from = 0; from < inputs.size();) {
    const size_t end = std::min(inputs.find(separator, from), inputs.size());
    const std::string text = inputs.substr(from, end - from);
    from = end + separator.size();
    std::string line;
    if (!std::getline(outputs, line)) break;
    std::istringstream numbers(line);
    const std::vector<int32_t> expected{std::istream_iterator<int32_t>(numbers), {}};
    EXPECT_EQ(tokenizer->encode(text, false), expected) << "'" << text << "'";
    ++compared;
  }
  EXPECT_GT(compared, 40u);
}

INSTANTIATE_TEST_SUITE_P(Files, LlamaCppVocabulary,
                         testing::Values("llama-bpe", "llama-spm", "qwen2", "phi-3", "gpt-2", "starcoder",
                                         "refact"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace lowkey::coordinator
