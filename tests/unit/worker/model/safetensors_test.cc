// Malformed weight files: each gives one line with the file's name, none crashes (run under AddressSanitizer,
// too).
#include "worker/model/safetensors_reader.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>

#include "kernels/cpu/cpu_backend.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/worker/model/golden.h"
#include "worker/model/model.h"

namespace lowkey::testing {
namespace {

namespace fs = std::filesystem;
using worker::SafetensorsReader;

std::string file_of(std::string header, size_t data_bytes) {
  while (header.size() % 8 != 0) header += ' ';
  std::string file(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, '\x01');
}

Result<SafetensorsHeader> parse(const std::string& file) {
  // An exact allocation, so that a sanitizer sees the first byte read beyond it.
  const auto copy = std::make_unique<std::byte[]>(file.size());
  std::memcpy(copy.get(), file.data(), file.size());
  return parse_safetensors_header({copy.get(), file.size()}, "w.safetensors");
}

TEST(SafetensorsHeader, GoodOnes) {
  const auto header = parse(file_of(
      R"({"b":{"dtype":"F32","shape":[2,2],"data_offsets":[4,20]},"__metadata__":{"format":"pt","a":"b"},)"
      R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"empty":{"dtype":"I32","shape":[0,7],)"
      R"("data_offsets":[20,20]},"scalar":{"dtype":"U8","shape":[],"data_offsets":[20,21]}})",
      21));
  ASSERT_TRUE(header.ok()) << header.error().message;
  ASSERT_EQ(header->tensors.size(), 4u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[1].shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(header->tensors[1].dtype, "F32");
  EXPECT_EQ(header->metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"a", "b"}}));
  EXPECT_TRUE(parse(file_of("{}", 0)).ok());
}

TEST(SafetensorsHeader, BadOnes) {
  const auto tensor = [](const std::string& body, size_t bytes = 4) {
    return file_of(R"({"a":)" + body + "}", bytes);
  };
  const struct {
    std::string file;
    const char* message;
  } cases[] = {
      {"", "expected at least 8 bytes, found 0"},
      {"1234567", "expected at least 8 bytes, found 7"},
      {std::string(8, '\xff'), "expected a header length of at most 0 bytes, found 18446744073709551615"},
      {std::string("\x05\0\0\0\0\0\0\0{}", 10), "expected a header length of at most 2 bytes, found 5"},
      {file_of("", 0), "header: expected a JSON object, found nothing"},
      {file_of("[]", 0), "header: expected a JSON object, found byte 0x5b"},
      {file_of("{\"a\":", 0), "header: expected JSON, found incomplete JSON at byte 8"},
      {file_of("{\"a\" 1}", 0), "header: expected JSON, found syntax error at byte 5"},
      {file_of("{\"\xff\":1}", 0), "header: expected JSON, found syntax error at byte 2"},
      {file_of("{} {}", 0), "header: expected spaces after the JSON, found byte 0x7b"},
      {tensor("1"), "header: tensor 'a': expected the header's structure, found number 1"},
      {tensor("null"), "header: tensor 'a': expected the header's structure, found null"},
      {tensor("[]"), "header: tensor 'a': expected the header's structure, found an array"},
      {tensor("{}"), "header: tensor 'a': expected dtype, shape and data_offsets, found a field missing"},
      {tensor(R"({"dtype":"F32","shape":[1]})"),
       "header: tensor 'a': expected dtype, shape and data_offsets, found a field missing"},
      {tensor(R"({"dtype":"F32","dtype":"F32"})"), "header: tensor 'a': expected one 'dtype', found two"},
      {tensor(R"({"device":"cpu"})"),
       "header: tensor 'a': expected dtype, shape or data_offsets, found field 'device'"},
      {tensor(R"({"shape":{"a":1}})"), "header: tensor 'a': expected a plain field, found an object"},
      {tensor(R"({"shape":[[1]]})"), "header: tensor 'a': expected the header's structure, found an array"},
      {tensor(R"({"shape":[-1]})"), "header: tensor 'a': expected whole numbers from 0, found -1"},
      {tensor(R"({"shape":[1.5]})"), "header: tensor 'a': expected whole numbers from 0, found 1.5"},
      {tensor(R"({"shape":[18446744073709551615]})"),
       "header: tensor 'a': expected numbers below 2^63, found 18446744073709551615"},
      {tensor(R"({"shape":[1,1,1,1,1,1,1,1,1,1]})"),
       "header: tensor 'a': expected a short list, found a longer one"},
      {tensor(R"({"data_offsets":[0]})"),
       "header: tensor 'a': expected data_offsets of two numbers, found 1"},
      {tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{})"),
       "header: tensor 'a': expected one entry, found two of the same name"},
      {tensor(R"({"dtype":"Q4","shape":[1],"data_offsets":[0,4]})"),
       "tensor 'a': expected a known dtype, found 'Q4'"},
      {tensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})"),
       "tensor 'a': expected a size below 2^64 bytes, found shape [4294967296, 4294967296]"},
      {tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"),
       "tensor 'a': expected 8 bytes (F32 [2]), found data_offsets [0, 4]"},
      {tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"),
       "tensor 'a': expected 4 bytes (F32 [1]), found data_offsets [4, 0]"},
      {tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"),
       "tensor 'a': expected data_offsets within 4 bytes of data, found [0, 8]"},
      {tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[2,6]})", 6),
       "tensor 'a': expected data_offsets aligned to 4 bytes, found 2"},
      {tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8),
       "tensor 'a': expected data_offsets that begin at 0 (gap), found [4, 8]"},
      {tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],)"
              R"("data_offsets":[4,12]})",
              12),
       "tensor 'b': expected data_offsets that begin at 8 (overlap), found [4, 12]"},
      {tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 7),
       "expected 4 bytes of data after the header, found 7"},
      {file_of(R"({"__metadata__":{"a":1}})", 0),
       "header: '__metadata__': expected the header's structure, found number 1"},
      {file_of("{\"" + std::string(600, 'n') + "\":1}", 0),
       "header: expected names of at most 512 bytes, found a longer one"},
  };
  for (const auto& [file, message] : cases) {
    const auto header = parse(file);
    ASSERT_FALSE(header.ok()) << message;
    EXPECT_EQ(header.error().code, Code::kBadInput);
    EXPECT_EQ(header.error().message, std::string("w.safetensors: ") + message);
  }
}

TEST(SafetensorsHeader, UnpaddedHeaderIsRefused) {
  const std::string json = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(json.size() + 1);
  const auto header = parse(file + json + ' ' + "x");
  ASSERT_FALSE(header.ok());
  EXPECT_EQ(header.error().message,
            "w.safetensors: expected a header padded to 8 bytes, found data at byte 62");
}

// Every single-byte change of a real header is either refused or still a consistent file.
TEST(SafetensorsHeader, ByteChangesNeverCrash) {
  std::ifstream in(golden_dir() / "llama_mqa" / "model.safetensors", std::ios::binary);
  const std::string good(std::istreambuf_iterator<char>(in), {});
  ASSERT_TRUE(parse(good).ok());
  uint64_t length = 0;
  std::memcpy(&length, good.data(), 8);
  int refused = 0, changes = 0;
  for (size_t at = 0; at < 8 + length; ++at) {
    for (const char byte : {'\0', '"', '9', '}', '\xff'}) {
      std::string bad = good;
      bad[at] = byte;
      refused += !parse(bad).ok();
      ++changes;
    }
  }
  EXPECT_GT(refused, changes * 8 / 10);
  for (size_t size = 0; size < good.size(); size += 97) EXPECT_FALSE(parse(good.substr(0, size)).ok());
}

// Folders: a copy of a golden model with one thing changed, loaded whole.
class BadFolder : public ::testing::Test {
 protected:
  void copy(const char* name) {
    for (const auto& item : fs::directory_iterator(golden_dir() / name))
      if (item.path().filename() != "expected.json")
        fs::copy(item.path(), folder_.path() / item.path().filename());
  }
  void replace(const fs::path& file, const std::string& from, const std::string& to) {
    std::ifstream in(folder_.path() / file, std::ios::binary);
    std::string text(std::istreambuf_iterator<char>(in), {});
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
    std::ofstream(folder_.path() / file, std::ios::binary) << text;
  }
  // The error of loading without the folder's path and the character after it; the path must be at its front.
  std::string refusal() {
    auto backend = kernels::make_cpu_backend({.dtype = kernels::DType::kF32});
    const auto config = worker::ModelConfig::read(folder_.path());
    EXPECT_TRUE(config.ok()) << config.error().message;
    if (!config.ok()) return "";
    const auto model = worker::Model::load(folder_.path(), *config, 0, 1, *backend);
    if (model.ok()) return "";
    EXPECT_EQ(model.error().code, Code::kBadInput);
    const std::string& message = model.error().message;
    const std::string path = folder_.path().string();
    EXPECT_EQ(message.find(path), 0u) << message;
    return message.substr(std::min(message.size(), path.size() + 1));
  }

  TempFolder folder_;
};

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kFirst = "model-00001-of-00002.safetensors";
constexpr const char* kSecond = "model-00002-of-00002.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

TEST_F(BadFolder, MissingTensor) {
  copy("llama_mqa");
  replace(kSingle, "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.xx_proj.weight");
  EXPECT_EQ(refusal(),
            "model.safetensors: tensor 'model.layers.1.mlp.up_proj.weight': expected shape [52, 32], "
            "found nothing");
}

TEST_F(BadFolder, UntiedModelWithoutHead) {
  copy("llama_gqa_scaled");
  replace("config.json", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
  EXPECT_EQ(refusal(), "model.safetensors: tensor 'lm_head.weight': expected shape [150, 32], found nothing");
}

TEST_F(BadFolder, ConfigOfAnotherModel) {
  copy("llama_mqa");
  replace("config.json", "\"intermediate_size\": 52", "\"intermediate_size\": 56");
  EXPECT_EQ(refusal(),
            "model.safetensors: tensor 'model.layers.0.mlp.gate_proj.weight': expected shape [56, 32], "
            "found [52, 32]");
}

TEST_F(BadFolder, IntegerWeights) {
  copy("llama_mqa");
  replace(kSingle, R"("lm_head.weight":{"dtype":"BF16")", R"("lm_head.weight":{"dtype":"I16" )");
  EXPECT_EQ(refusal(),
            "model.safetensors: tensor 'lm_head.weight': expected dtype F32, F16 or BF16, found I16");
}

TEST_F(BadFolder, TruncatedFile) {
  copy("llama_mqa");
  const auto size = fs::file_size(folder_.path() / kSingle);
  fs::resize_file(folder_.path() / kSingle, size / 2);
  EXPECT_NE(refusal().find("expected data_offsets within "), std::string::npos);
  fs::resize_file(folder_.path() / kSingle, 0);
  EXPECT_EQ(refusal(), "model.safetensors: expected data, found 0 bytes");
  fs::remove(folder_.path() / kSingle);
  EXPECT_EQ(refusal(), " expected model.safetensors or model.safetensors.index.json, found neither");
  fs::create_directory(folder_.path() / kSingle);
  EXPECT_EQ(refusal(), "model.safetensors: expected a file, found something else");
}

TEST_F(BadFolder, Shards) {
  copy("qwen2_sharded");
  EXPECT_EQ(refusal(), "");
  fs::rename(folder_.path() / kSecond, folder_.path() / "away");
  EXPECT_EQ(refusal(), std::string(kSecond) + ": expected a readable file: No such file or directory");
  fs::copy(folder_.path() / kFirst, folder_.path() / kSecond);
  EXPECT_NE(refusal().find("expected in one file, found in"), std::string::npos);
}

TEST_F(BadFolder, Index) {
  const auto with = [&](const char* text) {
    std::ofstream(folder_.path() / kIndex) << text;
    return refusal();
  };
  copy("qwen2_sharded");
  EXPECT_EQ(with("{}"),
            "model.safetensors.index.json: field 'weight_map': expected tensor names with their files, "
            "found nothing");
  EXPECT_EQ(with("[]"), "model.safetensors.index.json: expected a JSON object, found []");
  EXPECT_EQ(with(R"({"weight_map": {"a": 1}})"),
            "model.safetensors.index.json: tensor 'a': expected a file name in this folder, found 1");
  EXPECT_EQ(with(R"({"weight_map": {"a": "../x.safetensors"}})"),
            "model.safetensors.index.json: tensor 'a': expected a file name in this folder, found "
            "\"../x.safetensors\"");
  EXPECT_EQ(with(R"({"weight_map": {"a": "model-00001-of-00002.safetensors"}})"),
            "model.safetensors.index.json: tensor 'a': expected in model-00001-of-00002.safetensors, found "
            "in no file");
}

}  // namespace
}  // namespace lowkey::testing
