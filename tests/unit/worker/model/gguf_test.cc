// GGUF files (tests/golden/gguf/make_golden.py, written by the gguf package): blocks as the package decodes
// them, and models that give the logits of their safetensors twins.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "base/gguf/gguf_file.h"
#include "kernels/page/dtype.h"
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
  for (const char* name : {"Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q6_K"}) {
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

// What is held of Q4_K: the file's codes, its scales and minima as halves.
TEST(GgufBlocks, Q4KIsHeldAsItIs) {
  const auto file = GgufFile::open(gguf_dir() / "blocks.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message;
  const GgufTensor& tensor = file->header.tensors.at("Q4_K");
  const std::byte* data = file->map.bytes().data() + tensor.begin;
  std::vector<float> expected(3 * 512);
  worker::dequantize_gguf(tensor.type, data, std::ssize(expected), expected.data());
  std::array<int8_t, 32> codes;
  for (int block = 0; block < 3 * 512 / 32; ++block) {
    const auto [half, half_offset] = worker::gguf_codes(tensor.type, data, block, codes);
    const float scale = kernels::f16_to_f32(half), offset = kernels::f16_to_f32(half_offset);
    const float bound = (8 * std::abs(scale) + std::abs(offset)) / 1024 + 1e-6f;
    for (int i = 0; i < 32; ++i)
      ASSERT_NEAR(scale * codes[i] + offset, expected[block * 32 + i], bound) << block << ", " << i;
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

// Q4_K, Q6_K and Q5_0 in one model: exact where they are expanded, near where they are held in 4 and 8 bits.
TEST(GgufKQuants, LogitsEqualTransformers) {
  const auto expected = read_json(gguf_dir() / "k_quants.json");
  const auto tokens = ids(expected.at("tokens"));
  const auto logits = boost::json::value_to<std::vector<std::vector<float>>>(expected.at("logits"));
  for (const int tp : {1, 2}) {
    uint64_t full_bytes = 0;
    for (const auto weights : {worker::WeightStorage::kFull, worker::WeightStorage::kAuto}) {
      auto replica = Replica::load(gguf_dir() / "k_quants.gguf", {.tp = tp, .weights = weights});
      ASSERT_TRUE(replica.ok()) << replica.error().message;
      const auto actual = (*replica)->step(0, tokens);
      ASSERT_TRUE(actual.ok()) << actual.error().message;
      const auto& model = (*replica)->model(0);
      const double error = relative_error(*actual, logits);
      if (weights == worker::WeightStorage::kFull) {
        EXPECT_LE(error, 2e-4) << "TP " << tp;
        EXPECT_TRUE(model.weight_report().empty());
        full_bytes = model.packed_bytes();
        continue;
      }
      EXPECT_LE(error, 0.08) << "TP " << tp;  // activations are rounded, too
      EXPECT_LT(model.packed_bytes(), full_bytes / 4)
          << "8 bits and a scale, 4 and an offset, too, against 32";
      ASSERT_EQ(model.weight_report().kinds().size(), 6u) << model.weight_report().describe();
      for (const auto& [name, kind] : model.weight_report().kinds()) {
        const bool q4_k = name == "o" || name == "gate_up";  // all of it
        EXPECT_EQ(kind.bits, q4_k ? 4 : 8) << name;
        EXPECT_EQ(kind.as_stored, q4_k) << name;
        EXPECT_LT(kind.error.relative_rms(), 0.01) << name;
      }
    }
  }
}

// Snapshots of the Hugging Face cache are links to files that are called by their hash.
TEST(GgufFiles, AreKnownByTheirContentAndNamedByTheirLink) {
  const TempFolder folder;
  std::filesystem::create_directories(folder.path() / "blobs");
  std::filesystem::create_directories(folder.path() / "snapshots");
  const auto blob = folder.path() / "blobs" / "0123abcd", link = folder.path() / "snapshots" / "demo.v1.gguf";
  std::filesystem::copy_file(gguf_dir() / "qwen3.gguf", blob);
  std::filesystem::create_symlink("../blobs/0123abcd", link);
  for (const auto& [path, name] : {std::pair(link, "demo.v1"), std::pair(blob, "0123abcd")}) {
    EXPECT_TRUE(is_gguf(path)) << path;
    EXPECT_EQ(model_name(path), name);
    const auto config = worker::ModelConfig::read(path);
    ASSERT_TRUE(config.ok()) << config.error().message;
    EXPECT_EQ(config->name, name);
  }
  EXPECT_FALSE(is_gguf(folder.path() / "blobs"));
  EXPECT_EQ(model_name(folder.path() / "blobs" / ""), "blobs");
  EXPECT_EQ(model_name(folder.path() / "blobs" / "."), "blobs");
  std::ofstream(folder.path() / "other") << "GGU";
  EXPECT_FALSE(is_gguf(folder.path() / "other"));
}

// A file's bytes with one more integer in its metadata, in front of the others.
std::string with_integer(std::string bytes, const std::string& key, uint32_t value) {
  constexpr size_t kPairsAt = 16, kFirstPair = 24, kAlignment = 32;
  constexpr uint32_t kU32 = 4;
  std::string added;
  const auto add = [&](const std::string& name, uint32_t number) {
    const uint64_t length = name.size();
    added.append(reinterpret_cast<const char*>(&length), sizeof(length)).append(name);
    added.append(reinterpret_cast<const char*>(&kU32), sizeof(kU32));
    added.append(reinterpret_cast<const char*>(&number), sizeof(number));
  };
  add(key, value);
  const size_t rest = (added.size() + 16) % kAlignment;
  add(std::string(kAlignment - rest, 'x'), 0);  // tensors stay aligned
  uint64_t pairs = 0;
  std::memcpy(&pairs, bytes.data() + kPairsAt, sizeof(pairs));
  pairs += 2;
  std::memcpy(bytes.data() + kPairsAt, &pairs, sizeof(pairs));
  return bytes.insert(kFirstPair, added);
}

TEST(GgufFiles, PartsAndExpertsAreRefusedByName) {
  std::ifstream in(gguf_dir() / "qwen3.gguf", std::ios::binary);
  const std::string whole(std::istreambuf_iterator<char>(in), {});
  const TempFolder folder;
  const auto file = folder.path() / "x.gguf";
  const auto read = [&](const std::string& key, uint32_t value) {
    std::ofstream(file, std::ios::binary) << with_integer(whole, key, value);
    const auto config = worker::ModelConfig::read(file);
    return config.ok() ? std::string("read") : config.error().message;
  };
  EXPECT_EQ(read("split.count", 1), "read");
  EXPECT_EQ(read("split.count", 3), file.string() +
                                        ": 'split.count': expected one whole file (llama-gguf-split --merge "
                                        "makes it), found one of 3");
  EXPECT_EQ(read("qwen3.expert_count", 8),
            file.string() + ": 'qwen3.expert_count': expected a dense model (0 or nothing), found 8");
}

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
