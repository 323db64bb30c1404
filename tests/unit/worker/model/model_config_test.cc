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
using worker::RopeConfig;

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
  EXPECT_EQ(result->rope.theta, 10000);
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
    EXPECT_EQ(result->rope.scaling, RopeConfig::Scaling::kLlama3);
    EXPECT_EQ(result->rope.original_positions, 8192);
  }
  json::object config = llama(), parameters = llama3;
  config.erase("rope_theta");
  parameters["rope_type"] = "llama3";
  parameters["rope_theta"] = 500000.0;
  config["rope_parameters"] = parameters;
  const auto result = read(config);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->rope.theta, 500000);
  EXPECT_EQ(result->rope.factor, 8);

  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  EXPECT_EQ(read(config)->rope.scaling, RopeConfig::Scaling::kNone);
}

// Independent of the formula: the fast end is kept, the slow end divided by the factor, as published.
TEST_F(ModelConfigTest, Llama3FrequenciesAtBothEnds) {
  RopeConfig rope{.theta = 500000};
  const auto plain = rope.table(128, 131072).inv_freq;
  rope.scaling = RopeConfig::Scaling::kLlama3;
  rope.factor = 8;
  rope.original_positions = 8192;
  const auto scaled = rope.table(128, 131072).inv_freq;
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
       {"MambaForCausalLM"},
       "field 'architectures': expected one of [LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, "
       "Qwen3ForCausalLM, Phi3ForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM], found "
       "[\"MambaForCausalLM\"]"},
      {"architectures", json::array{},
       "field 'architectures': expected one of [LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, "
       "Qwen3ForCausalLM, Phi3ForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM], found "
       "[]"},
      {"hidden_act", "gelu", "field 'hidden_act': expected one of [silu, gelu_pytorch_tanh], found \"gelu\""},
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
      {"partial_rotary_factor", 0.4,
       "field 'partial_rotary_factor': expected a part of head_dim 8 that is an even number from 2, found "
       "4E-1"},
      {"layer_types",
       {"full_attention", "sliding_attention"},
       "field 'layer_types': expected full_attention for each of 2 layers, found layer 1: "
       "\"sliding_attention\""},
      {"layer_types",
       {"full_attention"},
       "field 'layer_types': expected full_attention for each of 2 layers, found [\"full_attention\"]"},
      {"rope_scaling",
       {{"rope_type", "mrope"}},
       "field 'rope_scaling.rope_type': expected one of [default, linear, dynamic, yarn, llama3, longrope], "
       "found \"mrope\""},
      {"rope_scaling",
       {{"rope_type", "longrope"}, {"short_factor", {1, 2}}, {"long_factor", {1, 2, 3, 4}}},
       "field 'rope_scaling.short_factor': expected 4 numbers above 0, found [1,2]"},
      {"use_bidirectional_attention", true,
       "field 'use_bidirectional_attention': expected false (every token sees those before it), found true"},
      {"rope_scaling",
       {{"type", "llama3"}},
       "field 'rope_scaling.factor': expected a number from 1 to 1000000, found "
       "nothing"},
      {"rope_scaling", 3, "field 'rope_scaling': expected an object, found 3"},
  };
  for (const auto& [field, value, message] : cases) {
    json::object config = llama();
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

TEST_F(ModelConfigTest, WindowsOfEveryFamily) {
  const auto windows = [&](const char* name, auto&& change) {
    json::object config = read_json(golden_dir() / name / "config.json").as_object();
    change(config);
    const auto result = read(config);
    EXPECT_TRUE(result.ok()) << result.error().message;
    return result.ok() ? result->windows : std::vector<int>{-1};
  };
  const auto as_is = [](json::object&) {};
  EXPECT_EQ(windows("mistral", as_is), (std::vector{20, 20}));
  EXPECT_EQ(windows("mistral", [](json::object& c) { c["sliding_window"] = nullptr; }), std::vector<int>());
  EXPECT_EQ(windows("mistral", [](json::object& c) { c["sliding_window"] = 64; }), std::vector<int>())
      << "holds every position";
  EXPECT_EQ(windows("qwen2_window", as_is), (std::vector{0, 20}));
  EXPECT_EQ(windows("qwen2_window", [](json::object& c) { c["use_sliding_window"] = false; }),
            std::vector<int>());
  EXPECT_EQ(windows("gemma2", as_is), (std::vector{20, 0, 20}));
  EXPECT_EQ(windows("gemma3", as_is), (std::vector{20, 20, 0}));
  EXPECT_EQ(windows("gemma3_parameters", as_is), (std::vector{0, 20, 20}));
  EXPECT_EQ(windows("phi3", as_is), (std::vector{20, 20}));

  json::object config = read_json(golden_dir() / "mistral" / "config.json").as_object();
  EXPECT_EQ(read(config)->widest_window(), 20);
  config["layer_types"] = {"sliding_attention", "full_attention"};
  EXPECT_EQ(read(config)->widest_window(), 0) << "some layer sees all";
  config["layer_types"] = {"sliding_attention", "chunked_attention"};
  EXPECT_EQ(refusal(config),
            "field 'layer_types': expected full_attention or sliding_attention for each of 2 layers, found "
            "layer 1: \"chunked_attention\"");
}

TEST_F(ModelConfigTest, GemmaSaysWhatItsScoresAre) {
  json::object config = read_json(golden_dir() / "gemma2" / "config.json").as_object();
  EXPECT_EQ(read(config)->attention_soft_cap, 5);
  EXPECT_EQ(read(config)->logit_soft_cap, 8);
  EXPECT_FLOAT_EQ(read(config)->attention_scale(), 1 / std::sqrt(24.0f));
  EXPECT_TRUE(read(config)->tie_word_embeddings) << "unless config.json says otherwise";
  config["attn_logit_softcapping"] = nullptr;
  config.erase("final_logit_softcapping");
  EXPECT_EQ(read(config)->attention_soft_cap, 0) << "null: none";
  EXPECT_EQ(read(config)->logit_soft_cap, 30) << "absent: as published";
  json::object gemma3 = read_json(golden_dir() / "gemma3" / "config.json").as_object();
  EXPECT_EQ(read(gemma3)->logit_soft_cap, 0);
  EXPECT_EQ(read(gemma3)->local_rope->theta, 10000);
  EXPECT_EQ(read(gemma3)->rope.factor, 8);
  EXPECT_EQ(read(gemma3)->max_positions, 64) << "counts the scaling already";
  gemma3["attn_logit_softcapping"] = 50;
  EXPECT_EQ(refusal(gemma3), "field 'attn_logit_softcapping': expected null, found 50");
}

// What is served is what the scaling was made for.
TEST_F(ModelConfigTest, ScalingsOfRopeServeTheirContext) {
  for (const auto& [scaling, positions] :
       {std::pair<json::value, int>{{{"type", "linear"}, {"factor", 4}}, 256},
        {{{"type", "dynamic"}, {"factor", 2}}, 128},
        {{{"type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 32}}, 128},
        {{{"type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 8}}, 64}}) {
    json::object config = llama();
    config["rope_scaling"] = scaling;
    EXPECT_EQ(read(config)->max_positions, positions) << json::serialize(scaling);
  }
}

// Frequencies and attention factors of transformers (tests/golden/model/make_golden.py).
TEST_F(ModelConfigTest, RopeTablesEqualTransformers) {
  const auto golden = read_json(golden_dir() / "rope.json");
  for (const auto& item : golden.at("cases").as_array()) {
    json::object config = llama();
    for (const auto& [key, value] : item.at("config").as_object()) config[key] = value;
    const auto read_back = read(config);
    ASSERT_TRUE(read_back.ok()) << read_back.error().message;
    const kernels::RopeTable table = read_back->rope.table(read_back->head_dim, read_back->max_positions);
    const auto expected = json::value_to<std::vector<double>>(item.at("inv_freq"));
    ASSERT_EQ(table.inv_freq.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(table.inv_freq[i], expected[i], 3e-6 * expected[i])
          << json::serialize(item.at("config").at("rope_scaling")) << " " << i;
    EXPECT_NEAR(table.attention_factor, item.at("attention_factor").to_number<double>(), 1e-6);
  }
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
                .message.find("expected a model folder or a GGUF file, found nothing"),
            std::string::npos);
}

// A shorter context than the model's: LongRoPE takes its short factors, dynamic NTK a smaller base, a window
// that holds all of it is none. Whoever serves another context computes other pages.
TEST(ContextLimit, ChoosesTheFrequenciesOfTheContext) {
  const auto read = [](const char* name) { return ModelConfig::read(golden_dir() / name).value(); };
  const auto frequencies = [](const ModelConfig& config) {
    return config.rope.table(config.head_dim, config.max_positions).inv_freq;
  };
  for (const char* name : {"phi3_long", "llama_dynamic"}) {
    ModelConfig config = read(name);
    const auto whole = frequencies(config);
    ASSERT_TRUE(config.limit_context(config.max_positions).ok());
    EXPECT_FALSE(config.limited) << "nothing is cut off";
    ASSERT_TRUE(config.limit_context(16).ok());
    EXPECT_EQ(config.max_positions, 16);
    EXPECT_NE(frequencies(config), whole) << name;
    EXPECT_NE(held_fingerprint(Hash128{1, 2}, config), held_fingerprint(Hash128{1, 2}, read(name)));
  }
  ModelConfig phi3 = read("phi3_long");
  ASSERT_TRUE(phi3.limit_context(16).ok());
  RopeConfig plain{.theta = phi3.rope.theta, .rotated = phi3.rope.rotated};
  const auto unscaled = plain.table(phi3.head_dim, 16).inv_freq;
  for (size_t i = 0; i < unscaled.size(); ++i)
    EXPECT_FLOAT_EQ(frequencies(phi3)[i] * static_cast<float>(phi3.rope.short_factors[i]), unscaled[i]);
  ModelConfig mistral = read("mistral");
  EXPECT_GT(mistral.widest_window(), 0);
  ASSERT_TRUE(mistral.limit_context(20).ok());
  EXPECT_EQ(mistral.widest_window(), 0);
  const Status refused = mistral.limit_context(21);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::kUsage);
  EXPECT_EQ(refused.error().message, "--max-context: expected at most 20, the context of mistral, found 21");
}

}  // namespace
}  // namespace lowkey::testing
