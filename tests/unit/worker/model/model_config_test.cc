#include "worker/model/model_config.h"

#include <gtest/gtest.h>

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <fstream>

#include "tests/support/temp_folder.h"
#include "tests/unit/worker/model/golden.h"

namespace lowkey::testing {
namespace {

namespace json = boost::json;
using worker::Family;
using worker::ModelConfig;
using worker::RopeScaling;

class ModelConfigTest : public ::testing::Test {
 protected:
  void write(const json::value& config, const char* file = "config.json") {
    std::ofstream(folder_.path() / file) << json::serialize(config);
  }
  json::object llama() { return read_json(golden_dir() / "llama_mha" / "config.json").as_object(); }
  Result<ModelConfig> read(const json::object& config) {
    write(config);
    return ModelConfig::read(folder_.path());
  }
  // The one line of the error; empty when it was accepted.
  std::string refusal(const json::object& config) {
    const auto result = read(config);
    if (result.ok()) return "";
    EXPECT_EQ(result.error().code, Code::kBadInput);
    EXPECT_EQ(result.error().message.find('\n'), std::string::npos);
    const std::string file = (folder_.path() / "config.json").string();
    EXPECT_EQ(result.error().message.find(file), 0u) << result.error().message;
    return result.error().message.substr(file.size() + 2);
  }

  TempFolder folder_;
};

TEST_F(ModelConfigTest, DemoModel) {
  const auto config = ModelConfig::read(demo_model());
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->name, "demo-model");
  EXPECT_EQ(config->family, Family::kLlama);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_EQ(config->eos_token_ids, std::vector<int32_t>{0});
  EXPECT_EQ(config->bos_token_id, 0);
}

TEST_F(ModelConfigTest, OptionalFields) {
  json::object config = llama();
  for (const char* field :
       {"head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps", "bos_token_id", "eos_token_id",
        "tie_word_embeddings", "hidden_act", "attention_bias", "mlp_bias"})
    config.erase(field);
  const auto result = read(config);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->head_dim, 4);  // hidden 32 over 8 heads
  EXPECT_EQ(result->num_kv_heads, 8);
  EXPECT_EQ(result->rope_theta, 10000);
  EXPECT_EQ(result->rms_norm_eps, 1e-6f);
  EXPECT_FALSE(result->tie_word_embeddings);
  EXPECT_FALSE(result->bos_token_id.has_value());
  EXPECT_TRUE(result->eos_token_ids.empty());
}

TEST_F(ModelConfigTest, EndOfTextTokensAreMerged) {
  json::object config = llama();
  config["eos_token_id"] = {7, 2};
  write({{"eos_token_id", {2, 9}}, {"bos_token_id", 5}}, "generation_config.json");
  const auto result = read(config);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->eos_token_ids, (std::vector<int32_t>{7, 2, 9}));

  write({{"eos_token_id", 150}}, "generation_config.json");
  const auto refused = ModelConfig::read(folder_.path());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message,
            (folder_.path() / "generation_config.json").string() +
                ": field 'eos_token_id': expected a token id from 0 to 149, found 150");
}

TEST_F(ModelConfigTest, RopeScalingInThreeSpellings) {
  const json::object llama3{{"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  for (const char* spelling : {"rope_type", "type"}) {
    json::object config = llama(), scaling = llama3;
    scaling[spelling] = "llama3";
    config["rope_scaling"] = scaling;
    const auto result = read(config);
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_EQ(result->rope_scaling.type, RopeScaling::Type::kLlama3);
    EXPECT_EQ(result->rope_scaling.original_max_positions, 8192);
  }
  json::object config = llama(), parameters = llama3;
  config.erase("rope_theta");
  parameters["rope_type"] = "llama3";
  parameters["rope_theta"] = 500000.0;
  config["rope_parameters"] = parameters;
  const auto result = read(config);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->rope_theta, 500000);
  EXPECT_EQ(result->rope_scaling.factor, 8);

  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  EXPECT_EQ(read(config)->rope_scaling.type, RopeScaling::Type::kNone);
}

// Independent of the formula: the fast end is kept, the slow end divided by the factor, as published.
TEST_F(ModelConfigTest, Llama3FrequenciesAtBothEnds) {
  ModelConfig config;
  config.head_dim = 128;
  config.rope_theta = 500000;
  const auto plain = config.rope_inv_freq();
  config.rope_scaling = {RopeScaling::Type::kLlama3, 8, 1, 4, 8192};
  const auto scaled = config.rope_inv_freq();
  EXPECT_FLOAT_EQ(scaled.front(), plain.front());
  EXPECT_FLOAT_EQ(scaled.back(), plain.back() / 8);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_LE(scaled[i], plain[i] * 1.0001f);
    EXPECT_GE(scaled[i], plain[i] / 8.0001f);
  }
}

TEST_F(ModelConfigTest, RefusedByName) {
  const struct {
    const char* field;
    json::value value;
    const char* message;
  } cases[] = {
      {"architectures",
       {"GemmaForCausalLM"},
       "field 'architectures': expected one of [LlamaForCausalLM, "
       "Qwen2ForCausalLM, MistralForCausalLM], found [\"GemmaForCausalLM\"]"},
      {"architectures", json::array{},
       "field 'architectures': expected one of [LlamaForCausalLM, Qwen2ForCausalLM, "
       "MistralForCausalLM], found []"},
      {"architectures", {"MistralForCausalLM"}, ""},
      {"hidden_act", "gelu", "field 'hidden_act': expected \"silu\", found \"gelu\""},
      {"hidden_size", "64", "field 'hidden_size': expected an integer from 1 to 131072, found \"64\""},
      {"hidden_size", 0, "field 'hidden_size': expected an integer from 1 to 131072, found 0"},
      {"hidden_size", 32.5, "field 'hidden_size': expected an integer from 1 to 131072, found 3.25E1"},
      {"num_key_value_heads", 3,
       "field 'num_key_value_heads': expected a divisor of num_attention_heads 8, found 3"},
      {"head_dim", 7, "field 'head_dim': expected an even number from 2 to 256, found 7"},
      {"vocab_size", 1ull << 63,
       "field 'vocab_size': expected an integer from 1 to 16777216, found "
       "9223372036854775808"},
      {"rms_norm_eps", -1, "field 'rms_norm_eps': expected a number from 0 to 1, found -1"},
      {"tie_word_embeddings", 1, "field 'tie_word_embeddings': expected true or false, found 1"},
      {"eos_token_id", "x", "field 'eos_token_id': expected a token id from 0 to 149, found \"x\""},
      {"eos_token_id", {1, 150}, "field 'eos_token_id': expected a token id from 0 to 149, found [1,150]"},
      {"quantization_config", json::object{},
       "field 'quantization_config': expected no quantized weights (F32, F16 "
       "or BF16 only), found {}"},
      {"partial_rotary_factor", 0.5, "field 'partial_rotary_factor': expected 1, found 5E-1"},
      {"layer_types",
       {"full_attention", "sliding_attention"},
       "field 'layer_types': expected \"full_attention\" for "
       "every layer, found [\"full_attention\",\"sliding_attention\"]"},
      {"rope_scaling",
       {{"rope_type", "yarn"}},
       "field 'rope_scaling.rope_type': expected one of [default, llama3], "
       "found \"yarn\""},
      {"rope_scaling",
       {{"type", "llama3"}},
       "field 'rope_scaling.factor': expected a number from 1 to 1000000, found "
       "nothing"},
      {"rope_scaling", 3, "field 'rope_scaling': expected an object, found 3"},
  };
  for (const auto& [field, value, message] : cases) {
    json::object config = llama();
    if (std::string_view(message).empty()) config["sliding_window"] = nullptr;
    config[field] = value;
    EXPECT_EQ(refusal(config), message) << field << " = " << json::serialize(value);
  }
}

TEST_F(ModelConfigTest, LayersMayReadAnEarlierOwnersKeysAndValues) {
  json::object config = llama();
  config["num_hidden_layers"] = 4;
  config["kv_producer"] = {0, 0, 2, 0};
  const auto shared = read(config);
  ASSERT_TRUE(shared.ok()) << shared.error().message;
  EXPECT_EQ(shared->num_banks(), 2);
  const int banks[] = {0, 0, 1, 0};
  for (int layer = 0; layer < 4; ++layer) EXPECT_EQ(shared->bank_of(layer), banks[layer]) << layer;

  const std::string expected =
      "field 'kv_producer': expected 4 layer numbers, each the layer's own or that of an earlier one that "
      "has its "
      "own, found ";
  for (const auto& [map, found] : {std::pair<json::value, const char*>{json::array{0, 0, 2}, "[0,0,2]"},
                                   {json::array{1, 1, 2, 2}, "layer 0: 1"},  // a later one
                                   {json::array{0, 0, 1, 3}, "layer 2: 1"},  // one that reads another itself
                                   {json::array{0, -1, 2, 2}, "layer 1: -1"},
                                   {json::array{0, 0, "2", 2}, "layer 2: \"2\""}}) {
    config["kv_producer"] = map;
    EXPECT_EQ(refusal(config), expected + found);
  }
  config["kv_producer"] = {0, 0, 2, 2};
  config["attention_bias"] = true;
  EXPECT_EQ(refusal(config), "field 'attention_bias': expected false where layers share K and V, found true");
}

TEST_F(ModelConfigTest, SlidingWindowsAreRefused) {
  json::object mistral = llama();
  mistral["architectures"] = {"MistralForCausalLM"};
  mistral["sliding_window"] = 4096;
  EXPECT_EQ(refusal(mistral),
            "field 'sliding_window': expected null (sliding windows are not supported), found 4096");
  json::object qwen = read_json(golden_dir() / "qwen2" / "config.json").as_object();
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(refusal(qwen),
            "field 'use_sliding_window': expected false (sliding windows are not supported), found true");
}

TEST_F(ModelConfigTest, EveryRequiredFieldIsNamedWhenMissing) {
  for (const char* field : {"architectures", "hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "vocab_size", "max_position_embeddings"}) {
    json::object config = llama();
    config.erase(field);
    const std::string message = refusal(config);
    EXPECT_EQ(message.find(std::string("field '") + field + "': expected "), 0u) << message;
    EXPECT_NE(message.find("found nothing"), std::string::npos) << message;
  }
}

TEST_F(ModelConfigTest, FilesThatAreNoConfig) {
  const auto message = [&] {
    const auto result = ModelConfig::read(folder_.path());
    return result.ok() ? "" : result.error().message;
  };
  EXPECT_NE(message().find("config.json: expected a file, found nothing"), std::string::npos);
  for (const char* text : {"", "{", "[1]", "null", "{\"a\": NaN}", "\xff\xfe"}) {
    std::ofstream(folder_.path() / "config.json") << text;
    EXPECT_NE(message().find("config.json: expected "), std::string::npos) << text;
  }
  EXPECT_NE(ModelConfig::read(folder_.path() / "absent")
                .error()
                .message.find("expected a model folder, found nothing"),
            std::string::npos);
}

}  // namespace
}  // namespace lowkey::testing
