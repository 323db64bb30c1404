// GGUF files (tests/golden/gguf/make_golden.py, written by the gguf package): blocks as the package decodes
// them, and models that give the logits of their safetensors twins.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "base/gguf/gguf_file.h"
#include "tests/support/replica.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/worker/model/golden.h"
#include "worker/model/gguf_blocks.h"
#include "worker/model/gguf_weights.h"

namespace lowkey::testing {
namespace {

std::filesystem::path gguf_dir() {
  return std::filesystem::path(LOWKEY_SOURCE_DIR) / "tests" / "golden" / "gguf";
}

TEST(GgufBlocks, EqualThePackageBitForBit) {
  const auto file = GgufFile::open(gguf_dir() / "blocks.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message;
  for (const char* name : {"Q8_0", "Q4_0", "Q4_K", "Q6_K"}) {
    const GgufTensor& tensor = file->header.tensors.at(name);
    const GgufTensor& expected = file->header.tensors.at(std::string("expected.") + name);
    ASSERT_EQ(tensor.shape, (std::vector<int64_t>{3, 512}));
    ASSERT_EQ(expected.shape, tensor.shape);
    std::vector<float> values(3 * 512);
    worker::dequantize_gguf(tensor.type, file->map.bytes().data() + tensor.begin, std::ssize(values),
                            values.data());
    EXPECT_EQ(std::memcmp(values.data(), file->map.bytes().data() + expected.begin, values.size() * 4), 0)
        << name;
  }
}

class GgufModels : public ::testing::TestWithParam<const char*> {};

TEST_P(GgufModels, LogitsEqualTheSafetensorsTwin) {
  const std::vector<int32_t> tokens = {5, 17, 33, 2, 90, 41, 8, 8, 12, 3, 77, 60, 4,  19, 71, 12,
                                       9, 10, 53, 1, 2,  3,  4, 5, 6,  7, 8,  9,  10, 20, 30, 40};
  for (const int tp : {1, 2}) {
    const ReplicaOptions options{.tp = tp, .pages = {.page_tokens = 16}};
    auto twin = Replica::load(golden_dir() / GetParam(), options);
    auto replica = Replica::load(gguf_dir() / (std::string(GetParam()) + ".gguf"), options);
    ASSERT_TRUE(twin.ok()) << twin.error().message;
    ASSERT_TRUE(replica.ok()) << replica.error().message;
    const auto expected = twin.value()->step(0, tokens), actual = replica.value()->step(0, tokens);
    ASSERT_TRUE(expected.ok() && actual.ok());
    EXPECT_LE(relative_error(*actual, *expected), 1e-5) << "TP " << tp;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, GgufModels,
                         ::testing::Values("llama_gqa_scaled", "llama_yarn", "mistral", "qwen2", "qwen3",
                                           "phi3_long", "gemma2", "gemma3"),
                         [](const auto& info) { return info.param; });

TEST(GgufConfig, IsWhatTheTwinSays) {
  const auto config = worker::ModelConfig::read(gguf_dir() / "gemma2.gguf");
  const auto twin = worker::ModelConfig::read(golden_dir() / "gemma2");
  ASSERT_TRUE(config.ok() && twin.ok()) << config.error().message;
  EXPECT_EQ(config->name, "gemma2");
  EXPECT_EQ(config->windows, twin->windows);
  EXPECT_EQ(config->attention_soft_cap, twin->attention_soft_cap);
  EXPECT_EQ(config->logit_soft_cap, twin->logit_soft_cap);
  EXPECT_EQ(config->vocab_size, twin->vocab_size);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_NE(worker::model_fingerprint(gguf_dir() / "gemma2.gguf").value(),
            worker::model_fingerprint(gguf_dir() / "gemma3.gguf").value());
}

// Whatever is cut off or changed is an error line that names the file, or a header whose tensors lie inside
// it.
TEST(GgufHeaders, DamagedFilesAreRefused) {
  std::ifstream in(gguf_dir() / "blocks.gguf", std::ios::binary);
  const std::string whole(std::istreambuf_iterator<char>(in), {});
  const auto parse = [](const std::string& bytes) {
    return parse_gguf_header(std::as_bytes(std::span(bytes)), "x.gguf");
  };
  ASSERT_TRUE(parse(whole).ok());
  for (const size_t size : {0, 3, 8, 20, 24, 60, 200, 500}) {
    const auto cut = parse(whole.substr(0, size));
    ASSERT_FALSE(cut.ok()) << size;
    EXPECT_EQ(cut.error().code, Code::kBadInput);
    EXPECT_EQ(cut.error().message.find("x.gguf: "), 0u) << cut.error().message;
  }
  EXPECT_FALSE(parse(whole.substr(0, whole.size() - 2000)).ok()) << "tensors beyond the end";
  for (size_t at = 0; at < 600; ++at) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0xff);
    const auto header = parse(changed);
    if (!header.ok()) continue;
    for (const auto& [name, tensor] : header->tensors) EXPECT_LE(tensor.end, whole.size()) << name;
  }
  std::string unknown = whole;
  unknown[4] = 9;
  EXPECT_EQ(parse(unknown).error().message, "x.gguf: header: expected version 2 or 3, found 9");
}

}  // namespace
}  // namespace lowkey::testing
