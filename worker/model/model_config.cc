#include "worker/model/model_config.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <numbers>

#include "worker/model/json_fields.h"

namespace lowkey::worker {

namespace json = boost::json;

namespace {

constexpr uint64_t kMaxConfigBytes = 1 << 20;  // real ones have 1-5 KB

// Which decoder options an architecture has; "" in error where it is not one of ours.
void read_family(JsonFields& fields, ModelConfig& config) {
  constexpr std::string_view kSupported = "one of [LlamaForCausalLM, Qwen2ForCausalLM, MistralForCausalLM]";
  const json::value* list = fields.find("architectures");
  if (list == nullptr || !list->is_array() || list->get_array().size() != 1 ||
      !list->get_array()[0].is_string())
    return fields.fail("architectures", kSupported);
  const std::string_view name = list->get_array()[0].get_string();
  if (name == "LlamaForCausalLM") {
    config.family = Family::kLlama;
    config.attention_bias = fields.boolean("attention_bias", false);
    config.mlp_bias = fields.boolean("mlp_bias", false);
  } else if (name == "Qwen2ForCausalLM") {
    config.family = Family::kQwen2;
    config.attention_bias = true;
    if (fields.boolean("use_sliding_window", false))
      fields.fail("use_sliding_window", "false (sliding windows are not supported)");
  } else if (name == "MistralForCausalLM") {  // Llama's decoder when its window is switched off
    config.family = Family::kLlama;
    if (fields.find("sliding_window") != nullptr)
      fields.fail("sliding_window", "null (sliding windows are not supported)");
  } else {
    fields.fail("architectures", kSupported);
  }
}

// Options that would change the result, and that this decoder does not have.
void refuse_unsupported(JsonFields& fields) {
  if (fields.text("hidden_act", "silu") != "silu") fields.fail("hidden_act", "\"silu\"");
  if (fields.find("quantization_config") != nullptr)
    fields.fail("quantization_config", "no quantized weights (F32, F16 or BF16 only)");
  if (fields.number("partial_rotary_factor", 0, 1, 1.0) != 1.0) fields.fail("partial_rotary_factor", "1");
  if (const json::value* types = fields.find("layer_types")) {
    const auto full = [](const json::value& type) {
      return type.is_string() && type.get_string() == "full_attention";
    };
    if (!types->is_array() || !std::ranges::all_of(types->get_array(), full))
      fields.fail("layer_types", "\"full_attention\" for every layer");
  }
}

void read_dimensions(JsonFields& fields, ModelConfig& config) {
  config.hidden_size = fields.integer("hidden_size", 1, 1 << 17);
  config.intermediate_size = fields.integer("intermediate_size", 1, 1 << 20);
  config.num_layers = fields.integer("num_hidden_layers", 1, 1024);
  config.num_heads = fields.integer("num_attention_heads", 1, 1024);
  config.num_kv_heads = fields.integer("num_key_value_heads", 1, 1024, config.num_heads);
  config.vocab_size = fields.integer("vocab_size", 1, 1 << 24);
  config.max_positions = fields.integer("max_position_embeddings", 1, 1 << 28);
  config.rms_norm_eps = static_cast<float>(fields.number("rms_norm_eps", 0, 1, 1e-6));
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  if (!fields.status().ok()) return;

  if (config.num_heads % config.num_kv_heads != 0)
    fields.fail("num_key_value_heads", fmt::format("a divisor of num_attention_heads {}", config.num_heads));
  if (fields.find("head_dim") == nullptr && config.hidden_size % config.num_heads != 0)
    fields.fail("hidden_size", fmt::format("a multiple of num_attention_heads {}", config.num_heads));
  config.head_dim = fields.integer("head_dim", 2, 256, config.hidden_size / config.num_heads);
  if (config.head_dim < 2 || config.head_dim > 256 || config.head_dim % 2 != 0)
    fields.fail("head_dim", "an even number from 2 to 256", std::to_string(config.head_dim));
}

// `kv_producer`: one entry a layer.
void read_layer_sharing(JsonFields& fields, ModelConfig& config) {
  const json::value* list = fields.find("kv_producer");
  if (list == nullptr || !fields.status().ok()) return;
  const std::string expected = fmt::format(
      "{} layer numbers, each the layer's own or that of an earlier one that has its own", config.num_layers);
  if (!list->is_array() || static_cast<int>(list->get_array().size()) != config.num_layers)
    return fields.fail("kv_producer", expected);
  if (config.attention_bias) return fields.fail("attention_bias", "false where layers share K and V");
  std::vector<int> producer;
  for (const json::value& value : list->get_array()) {
    const int64_t layer = static_cast<int64_t>(producer.size());
    const int64_t from = value.is_int64() ? value.get_int64() : -1;
    if (from < 0 || from > layer || (from < layer && producer[from] != from))
      return fields.fail("kv_producer", expected, fmt::format("layer {}: {}", layer, json::serialize(value)));
    producer.push_back(static_cast<int>(from));
  }
  config.kv_producer = std::move(producer);
}

void read_rope_scaling(const json::object& object, std::string file, const char* name, ModelConfig& config,
                       Status& status) {
  JsonFields fields(object, std::move(file), std::string(name) + ".");
  config.rope_theta = fields.number("rope_theta", 1, 1e12, config.rope_theta);
  if (fields.number("partial_rotary_factor", 0, 1, 1.0) != 1.0) fields.fail("partial_rotary_factor", "1");
  const char* spelling = fields.find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string type = fields.text(spelling, "default");
  if (type == "llama3") {
    RopeScaling& scaling = config.rope_scaling;
    scaling.type = RopeScaling::Type::kLlama3;
    scaling.factor = fields.number("factor", 1, 1e6);
    scaling.low_freq_factor = fields.number("low_freq_factor", 1e-6, 1e6);
    scaling.high_freq_factor = fields.number("high_freq_factor", 1e-6, 1e6);
    scaling.original_max_positions = fields.number("original_max_position_embeddings", 1, 1e9);
    if (fields.status().ok() && scaling.high_freq_factor <= scaling.low_freq_factor)
      fields.fail("high_freq_factor", fmt::format("more than low_freq_factor {}", scaling.low_freq_factor));
  } else if (type != "default") {
    fields.fail(spelling, "one of [default, llama3]");
  }
  status = fields.status();
}

// transformers < 5: rope_theta beside rope_scaling; from 5 on: both in rope_parameters.
Status read_rope(JsonFields& fields, const std::string& file, ModelConfig& config) {
  config.rope_theta = fields.number("rope_theta", 1, 1e12, 10000.0);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const json::object* child = fields.child(name);
    if (child == nullptr) continue;
    Status status;
    read_rope_scaling(*child, file, name, config, status);
    if (!status.ok()) return status;
  }
  return {};
}

void read_token_ids(JsonFields& fields, ModelConfig& config) {
  const int last = config.vocab_size - 1;
  const std::string expected = fmt::format("a token id from 0 to {}", last);
  const auto take = [&](const char* name, const json::value& value, auto&& store) {
    if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() > last)
      return fields.fail(name, expected);
    store(static_cast<int32_t>(value.get_int64()));
  };
  if (const json::value* bos = fields.find("bos_token_id"))
    take("bos_token_id", *bos, [&](int32_t id) { config.bos_token_id = id; });
  const json::value* eos = fields.find("eos_token_id");
  if (eos == nullptr) return;
  const auto add_eos = [&](int32_t id) {
    if (std::ranges::find(config.eos_token_ids, id) == config.eos_token_ids.end())
      config.eos_token_ids.push_back(id);
  };
  if (!eos->is_array()) return take("eos_token_id", *eos, add_eos);
  for (const json::value& value : eos->get_array()) take("eos_token_id", value, add_eos);
}

}  // namespace

Result<ModelConfig> ModelConfig::read(const std::filesystem::path& model_dir) {
  std::error_code ec;
  if (!std::filesystem::is_directory(model_dir, ec))
    return Error{Code::kBadInput,
                 fmt::format("{}: expected a model folder, found {}", model_dir.string(),
                             std::filesystem::exists(model_dir, ec) ? "something else" : "nothing")};
  ModelConfig config;
  config.name = std::filesystem::canonical(model_dir, ec).filename().string();

  const std::string file = (model_dir / "config.json").string();
  LOWKEY_ASSIGN(object, read_json_object(file, kMaxConfigBytes));
  JsonFields fields(object, file);
  read_family(fields, config);
  refuse_unsupported(fields);
  read_dimensions(fields, config);
  read_layer_sharing(fields, config);
  LOWKEY_TRY(fields.status());
  LOWKEY_TRY(read_rope(fields, file, config));
  read_token_ids(fields, config);
  LOWKEY_TRY(fields.status());

  const std::filesystem::path generation = model_dir / "generation_config.json";
  if (!std::filesystem::exists(generation, ec)) return config;
  LOWKEY_ASSIGN(defaults, read_json_object(generation, kMaxConfigBytes));
  JsonFields generation_fields(defaults, generation.string());
  read_token_ids(generation_fields, config);
  LOWKEY_TRY(generation_fields.status());
  return config;
}

int ModelConfig::num_banks() const {
  int banks = 0;
  for (int layer = 0; layer < num_layers; ++layer) banks += owns_kv(layer);
  return banks;
}

int ModelConfig::bank_of(int layer) const {
  const int producer = kv_producer.empty() ? layer : kv_producer[layer];
  int bank = 0;
  for (int i = 0; i < producer; ++i) bank += owns_kv(i);
  return bank;
}

kernels::CacheShape ModelConfig::cache_shape(int tp_size, kernels::DType dtype) const {
  LOWKEY_CHECK(tp_size >= 1 && num_kv_heads % tp_size == 0, "{} ranks, {} KV heads", tp_size, num_kv_heads);
  return {
      .num_banks = num_banks(), .num_kv_heads = num_kv_heads / tp_size, .head_dim = head_dim, .dtype = dtype};
}

// Su et al. 2021: theta^(-2i/d). llama3 scaling (the Llama 3.1 release): wavelengths beyond the original
// context / low_freq_factor are stretched by `factor`, those below original / high_freq_factor kept, in
// between blended.
std::vector<float> ModelConfig::rope_inv_freq() const {
  std::vector<float> result(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) {
    double frequency = std::pow(rope_theta, -2.0 * i / head_dim);
    if (rope_scaling.type == RopeScaling::Type::kLlama3) {
      const double turns = rope_scaling.original_max_positions * frequency / (2 * std::numbers::pi);
      const double keep = std::clamp((turns - rope_scaling.low_freq_factor) /
                                         (rope_scaling.high_freq_factor - rope_scaling.low_freq_factor),
                                     0.0, 1.0);
      frequency = (1 - keep) * frequency / rope_scaling.factor + keep * frequency;
    }
    result[i] = static_cast<float>(frequency);
  }
  return result;
}

}  // namespace lowkey::worker
