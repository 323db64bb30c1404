// What the golden files do not cover: malformed files, odd input, size, threads.
#include "coordinator/text/tokenizer.h"

#include <gtest/gtest.h>

#include <ctime>
#include <thread>

#include "golden.h"

namespace lowkey::coordinator {
namespace {

std::string error_of(const std::string& tokenizer, const std::string& config = "") {
  const auto loaded = Tokenizer::from_json(tokenizer, config, "dir");
  if (loaded.ok()) return "no error";
  EXPECT_EQ(loaded.error().code, Code::kBadInput);
  return loaded.error().message;
}

// A small byte-level file with one field set to `value`.
std::string with(const std::string& field, const std::string& value) {
  std::string text = R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]})";
  if (!field.empty()) text += ", \"" + field + "\": " + value;
  return text + "}";
}

std::string with_model(const std::string& model) {
  return R"({"model": )" + model + "}";
}

std::unique_ptr<Tokenizer> load(const std::string& text, const std::string& config = "") {
  auto loaded = Tokenizer::from_json(text, config, "dir");
  if (!loaded.ok()) throw std::runtime_error(loaded.error().message);
  return std::move(loaded).value();
}

TEST(Tokenizer, NamesFileFieldExpectedAndFound) {
  EXPECT_EQ(error_of("{}"), "dir/tokenizer.json: expected an object 'model', found none");
  EXPECT_EQ(error_of("[1]"), "dir/tokenizer.json: expected an object, found an array");
  EXPECT_TRUE(error_of("{\"model\": ").starts_with("dir/tokenizer.json: expected JSON, found incomplete"));
  EXPECT_TRUE(error_of("{} x").starts_with("dir/tokenizer.json: expected JSON, found extra data"));
  EXPECT_EQ(error_of(with_model("5")), "dir/tokenizer.json: model: expected an object, found 5");
  EXPECT_EQ(error_of(with_model(R"({"type": "Unigram"})")),
            "dir/tokenizer.json: model: type 'Unigram' is not supported (supported: BPE)");
  EXPECT_EQ(error_of(with_model(R"({"vocab": {"a": -1}, "merges": []})")),
            "dir/tokenizer.json: model.vocab: token 'a': expected an id in 0..4194303");
  EXPECT_EQ(error_of(with_model(R"({"vocab": {"a": 4294967296}, "merges": []})")),
            "dir/tokenizer.json: model.vocab: token 'a': expected an id in 0..4194303");
  EXPECT_EQ(error_of(with_model(R"({"vocab": {"a": 1, "b": 1}, "merges": []})")),
            "dir/tokenizer.json: model.vocab: tokens 'a' and 'b' share the id 1");
  EXPECT_EQ(error_of(with_model(R"({"vocab": {}, "merges": []})")),
            "dir/tokenizer.json: model.vocab: expected at least one token, found none");
  EXPECT_EQ(error_of(with_model(R"({"vocab": {"a": 1}})")),
            "dir/tokenizer.json: model: expected an array 'merges'");
  EXPECT_EQ(error_of(with_model(R"({"vocab": {"a": 1}, "merges": ["a a a"]})")),
            R"(dir/tokenizer.json: model.merges: entry 0: expected "left right" or ["left", "right"])");
  EXPECT_EQ(error_of(with_model(R"({"vocab": {"a": 1}, "merges": [["a", "a"]]})")),
            "dir/tokenizer.json: model.merges: entry 0: token 'aa' is not in the vocabulary");
  EXPECT_EQ(error_of(with_model(R"({"vocab": {"a": 1}, "merges": [], "unk_token": "?"})")),
            "dir/tokenizer.json: model: unk_token '?' is not in the vocabulary");
}

TEST(Tokenizer, NamesComponentsThatItDoesNotSupport) {
  EXPECT_EQ(error_of(with("normalizer",
                          R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]})")),
            "dir/tokenizer.json: normalizer.normalizers[1]: type 'Nmt' is not supported (supported: "
            "Sequence, Prepend, "
            "Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip)");
  EXPECT_NE(error_of(with("pre_tokenizer", R"({"type": "UnicodeScripts"})"))
                .find("pre_tokenizer: type 'UnicodeScripts'"),
            std::string::npos);
  EXPECT_NE(error_of(with("decoder", R"({"type": "WordPiece"})"))
                .find("decoder: type 'WordPiece' is not supported"),
            std::string::npos);
  EXPECT_NE(error_of(with("post_processor", R"({"type": "X"})")).find("post_processor: type 'X'"),
            std::string::npos);
  const auto split = [](const std::string& regex) {
    return with("pre_tokenizer",
                R"({"type": "Split", "behavior": "Isolated", "pattern": {"Regex": ")" + regex + "\"}}");
  };
  EXPECT_NE(error_of(split("(a")).find("pre_tokenizer.pattern: regular expression is malformed at byte 2"),
            std::string::npos);
  EXPECT_NE(error_of(split("[a&&b]")).find("uses class intersection &&"), std::string::npos);
  EXPECT_EQ(error_of(split("[^a]+|\\\\s")), "no error");
}

TEST(Tokenizer, ChecksAddedTokensAndTemplates) {
  EXPECT_EQ(error_of(with("added_tokens", R"([{"id": 0, "content": "x"}])")),
            "dir/tokenizer.json: added token 'x' has id 0, but the vocabulary says otherwise");
  EXPECT_EQ(error_of(with("added_tokens", R"([{"id": 99999999, "content": "x"}])")),
            "dir/tokenizer.json: added_tokens[0].id: expected an integer in 0..4194303, found 99999999");
  EXPECT_EQ(error_of(with("post_processor", R"({"type": "TemplateProcessing", "single": []})")),
            "dir/tokenizer.json: post_processor: expected a Sequence in 'single', found none");
  EXPECT_EQ(error_of(with("", ""), R"({"bos_token": 5})"),
            "dir/tokenizer_config.json: bos_token: expected a string, found 5");
  EXPECT_NE(error_of(with("", ""), "nonsense").find("dir/tokenizer_config.json: expected JSON"),
            std::string::npos);
}

TEST(Tokenizer, SurvivesEveryTruncationAndManyMutationsOfARealFile) {
  const std::string text = read_file(kGoldenDir / "llama2/tokenizer.json");
  for (size_t cut = 0; cut < text.size(); cut += 97) {
    EXPECT_FALSE(Tokenizer::from_json(text.substr(0, cut), "", "dir").ok());
  }
  const std::string replacements[] = {"null", "5", "\"x\"", "[]", "{}", "-1", "true"};
  const size_t head = text.find("\"vocab\"");
  size_t at = 0;
  for (int i = 0; (at = text.find(':', at + 1)) < head; ++i) {  // replaces each value before the vocabulary
    const size_t end = text.find_first_of(",}]", at);
    std::string mutated = text;
    mutated.replace(at + 1, end - at - 1, replacements[i % 7]);
    const auto loaded = Tokenizer::from_json(mutated, "", "dir");
    if (loaded.ok()) (*loaded)->decode((*loaded)->encode("hello wörld <s>", true), true);
  }
}

TEST(Tokenizer, ReadsSpecialTokensOfTheConfig) {
  const auto tokenizer = load(with("added_tokens", R"([{"id": 5, "content": "<s>", "special": true}])"),
                              R"({"bos_token": {"content": "<s>"}, "eos_token": "b", "pad_token": null})");
  EXPECT_EQ(tokenizer->bos(), 5);
  EXPECT_EQ(tokenizer->eos(), 1);
  EXPECT_EQ(tokenizer->bos_text(), "<s>");
  EXPECT_EQ(tokenizer->vocab_size(), 6);
  EXPECT_TRUE(tokenizer->is_special(5));
  EXPECT_FALSE(tokenizer->is_special(0));
  EXPECT_FALSE(tokenizer->is_special(-1));
  EXPECT_FALSE(tokenizer->is_special(1000));
  EXPECT_EQ(load(with("", ""))->bos(), std::nullopt);
}

TEST(Tokenizer, TellsTheBytesOfTokens) {
  auto loaded = Tokenizer::load(kGoldenDir / "llama2");
  ASSERT_TRUE(loaded.ok());
  const Tokenizer& tokenizer = **loaded;
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.id_of("<0xE2>")), "\xE2");
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.id_of("▁")), " ");
  EXPECT_EQ(tokenizer.token_bytes(-1), "");
  EXPECT_EQ(tokenizer.token_bytes(1 << 30), "");
}

TEST(Tokenizer, ReadsIllFormedTextAsReplacementCharacters) {
  auto loaded = Tokenizer::load(kGoldenDir / "gpt2");
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ((*loaded)->encode("a\xFF\xE2\x82", false), (*loaded)->encode("a\uFFFD\uFFFD", false));
}

TEST(Tokenizer, TokensWithoutADecoderAreSeparatedBySpaces) {
  const auto tokenizer = load(with("", ""));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{0, 2, 1}, false), "a ab b");
}

// 200 KB in one piece. A quadratic merge would take minutes, of computing: who waits for a core may.
TEST(Tokenizer, LongWordsTakeNoQuadraticTime) {
  for (const char* kind : {"gpt2", "llama3", "llama2", "metaspace"}) {
    auto loaded = Tokenizer::load(kGoldenDir / kind);
    ASSERT_TRUE(loaded.ok());
    std::string same(200'000, 'a'), mixed, symbols;
    for (int i = 0; i < 200'000; ++i) mixed += static_cast<char>('a' + (int64_t{i} * i + i / 7) % 26);
    for (int i = 0; i < 20'000; ++i) symbols += "=-\"😀";
    const std::string spaces(200'000, ' ');
    for (const std::string& text : {same, mixed, symbols, spaces, spaces + "x"}) {
      const std::clock_t begin = std::clock();
      const auto ids = (*loaded)->encode(text, false);
      EXPECT_LT(std::clock() - begin, 5 * CLOCKS_PER_SEC) << kind;
      if (std::string(kind) == "metaspace") continue;  // has no bytes to fall back to
      EXPECT_EQ((*loaded)->decode(ids, false), text) << kind;
    }
  }
}

TEST(Tokenizer, ThreadsShareIt) {
  auto loaded = Tokenizer::load(kGoldenDir / "qwen2");
  ASSERT_TRUE(loaded.ok());
  const Tokenizer& tokenizer = **loaded;
  const auto golden = read_golden(kGoldenDir / "qwen2/expected.json");
  const auto texts = golden_strings();
  std::vector<std::jthread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < texts.size(); ++i) {
        const size_t at = (i * 7 + static_cast<size_t>(t) * 131) % texts.size();
        wrong[t] += tokenizer.encode(texts[at], false) != as_ids(golden.at("ids").at(at)) ? 1 : 0;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace lowkey::coordinator
