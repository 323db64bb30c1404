// Weights held in 8 and 4 bits: rounded at load as ggml rounds, taken from GGUF files as they are, and what
// it costs.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/gguf/gguf_file.h"
#include "kernels/ops/few_bit_weights.h"
#include "tests/support/guarded_backend.h"
#include "tests/support/replica.h"
#include "tests/unit/worker/model/golden.h"
#include "worker/model/decoder_weights.h"
#include "worker/model/gguf_blocks.h"

namespace lowkey::testing {
namespace {

using worker::WeightStorage;

std::filesystem::path gguf_dir() {
  return std::filesystem::path(LOWKEY_SOURCE_DIR) / "tests" / "golden" / "gguf";
}

// Blocks that the gguf package made of the same values.
TEST(FewBits, RoundsAsThePackage) {
  const auto file = GgufFile::open(gguf_dir() / "blocks.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message;
  const std::byte* bytes = file->map.bytes().data();
  const std::byte* values = bytes + file->header.tensors.at("values").begin;
  for (const auto& [name, bits] : {std::pair("rounded.Q8_0", 8), std::pair("rounded.Q4_0", 4)}) {
    const GgufTensor& tensor = file->header.tensors.at(name);
    const std::byte* block = bytes + tensor.begin;
    kernels::FewBitMatrix matrix(bits, 3, 512);
    for (int row = 0; row < 3; ++row) {
      matrix.round_row(row, values, kernels::DType::kF32, row * 512);
      for (int i = 0; i < matrix.blocks(); ++i, block += gguf_block(tensor.type)->bytes) {
        std::array<int8_t, 32> codes;
        EXPECT_EQ(worker::gguf_codes(tensor.type, block, 0, codes), matrix.scale(row, i)) << name;
        EXPECT_EQ(std::memcmp(codes.data(), matrix.codes(row, i).data(), 32), 0) << name << " block " << i;
      }
    }
  }
}

std::vector<int32_t> some_tokens() {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 60; ++i) tokens.push_back((i * 37 + 5) % 96);
  return tokens;
}

std::vector<std::vector<float>> logits_of(const std::filesystem::path& model, WeightStorage weights,
                                          int tp = 1, worker::WeightReport* report = nullptr,
                                          uint64_t* bytes = nullptr) {
  auto replica = Replica::load(model, {.tp = tp, .weights = weights});
  if (!replica.ok()) throw std::runtime_error(replica.error().message);
  if (report != nullptr) *report = (*replica)->model(0).weight_report();
  if (bytes != nullptr) *bytes = (*replica)->model(0).packed_bytes();
  return (*replica)->step(0, some_tokens()).value();
}

// The blocks of the file and those made of the folder's weights are the same, so are the logits.
TEST(FewBits, BlocksOfAFileAreTakenAsTheyAre) {
  for (const auto& [file, weights] : {std::pair("few_bits_q8_0.gguf", WeightStorage::kInt8),
                                      std::pair("few_bits_q4_0.gguf", WeightStorage::kInt4)}) {
    worker::WeightReport stored, rounded;
    uint64_t bytes = 0;
    const auto of_file = logits_of(gguf_dir() / file, WeightStorage::kAuto, 1, &stored, &bytes);
    const auto of_folder = logits_of(gguf_dir() / "few_bits", weights, 1, &rounded);
    EXPECT_EQ(of_file, of_folder) << file;
    ASSERT_EQ(stored.kinds().size(), 6u) << stored.describe();
    for (const auto& [name, kind] : stored.kinds()) EXPECT_TRUE(kind.as_stored) << name;
    for (const auto& [name, kind] : rounded.kinds()) EXPECT_FALSE(kind.as_stored) << name;
    EXPECT_EQ(stored.kinds().at("qkv").bits, weights == WeightStorage::kInt8 ? 8 : 4);
    EXPECT_EQ(stored.kinds().at("head").bits, 8);
    auto config = worker::ModelConfig::read(gguf_dir() / "few_bits").value();
    config.weights = weights;
    EXPECT_EQ(bytes, worker::weight_bytes(config, 0, 1, kernels::DType::kF32));
    // Expanded they are the same weights, and the activations are not rounded.
    EXPECT_LE(relative_error(of_file, logits_of(gguf_dir() / file, WeightStorage::kFull)), 0.08) << file;
  }
}

// Two ranks: columns are cut between blocks (o) and within them (down), so that the latter are rounded in
// other groups.
TEST(FewBits, TwoRanksGiveNearlyTheLogitsOfOne) {
  for (const WeightStorage weights : {WeightStorage::kInt8, WeightStorage::kInt4})
    EXPECT_LE(relative_error(logits_of(gguf_dir() / "few_bits", weights, 2),
                             logits_of(gguf_dir() / "few_bits", weights, 1)),
              weights == WeightStorage::kInt8 ? 0.02 : 0.15);
}

// Devices without few bits compute the same weights, expanded.
TEST(FewBits, BackendsThatExpandThemAgree) {
  for (const WeightStorage weights : {WeightStorage::kInt8, WeightStorage::kInt4}) {
    auto replica = Replica::load(gguf_dir() / "few_bits",
                                 {.weights = weights, .backend = [] {
                                    return kernels::make_reference_backend(kernels::DType::kF32);
                                  }});
    ASSERT_TRUE(replica.ok()) << replica.error().message;
    EXPECT_LE(relative_error(logits_of(gguf_dir() / "few_bits", weights),
                             (*replica)->step(0, some_tokens()).value()),
              0.08);
  }
}

// Mean over the positions of KL(reference || other), nats.
double divergence(const std::vector<std::vector<float>>& reference,
                  const std::vector<std::vector<float>>& other) {
  const auto log_sum = [](const std::vector<float>& x) {
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const float v : x) sum += std::exp(v - most);
    return most + std::log(sum);
  };
  double total = 0;
  for (size_t row = 0; row < reference.size(); ++row) {
    const double a = log_sum(reference[row]), b = log_sum(other[row]);
    for (size_t i = 0; i < reference[row].size(); ++i)
      total += std::exp(reference[row][i] - a) * ((reference[row][i] - a) - (other[row][i] - b));
  }
  return total / static_cast<double>(reference.size());
}

// The demo model over its own greedy texts, against its bf16 weights.
TEST(FewBits, DivergenceOfTheDemoModelIsBounded) {
  const auto golden = read_json(golden_dir() / "greedy_demo.json");
  std::map<WeightStorage, std::vector<std::vector<float>>> logits;
  for (const WeightStorage weights : {WeightStorage::kFull, WeightStorage::kInt8, WeightStorage::kInt4}) {
    auto replica = Replica::load(demo_model(), {.dtype = kernels::DType::kBf16, .weights = weights});
    ASSERT_TRUE(replica.ok()) << replica.error().message;
    for (const auto& item : golden.at("cases").as_array()) {
      auto text = ids(item.at("prompt_ids"));
      const auto rest = ids(item.at("tokens"));
      text.insert(text.end(), rest.begin(), rest.end());
      const auto rows = (*replica)->step(0, text);
      ASSERT_TRUE(rows.ok());
      logits[weights].insert(logits[weights].end(), rows->begin(), rows->end());
      (*replica)->forget(0);
    }
  }
  const double eight = divergence(logits[WeightStorage::kFull], logits[WeightStorage::kInt8]);
  const double four = divergence(logits[WeightStorage::kFull], logits[WeightStorage::kInt4]);
  RecordProperty("kl_int8", std::to_string(eight));
  RecordProperty("kl_int4", std::to_string(four));
  EXPECT_GT(eight, 0);
  EXPECT_LT(eight, 0.0006);
  EXPECT_LT(four, 0.015);
}

}  // namespace
}  // namespace lowkey::testing
