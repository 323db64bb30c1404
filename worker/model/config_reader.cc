#include "worker/model/config_reader.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>

#include "worker/model/json_fields.h"

namespace lowkey::worker {

namespace json = boost::json;

namespace {

void read_family(JsonFields& fields, ModelConfig& config) {
  const json::value* list = fields.find("architectures");
  const FamilyTraits* traits = nullptr;
  if (list != nullptr && list->is_array() && list->get_array().size() == 1 &&
      list->get_array()[0].is_string())
    traits = find_architecture(std::string_view(list->get_array()[0].get_string()));
  if (traits == nullptr) return fields.fail("architectures", known_architectures());
  config.family = traits->family;
  config.qkv_bias = traits->qkv_bias;
  if (!traits->bias_options) return;
  config.qkv_bias = config.output_bias = fields.boolean("attention_bias", false);
  if (config.family == Family::kLlama) config.mlp_bias = fields.boolean("mlp_bias", false);
}

// Gemma 1 wrote "gelu" for its tanh form.
void read_activation(JsonFields& fields, ModelConfig& config) {
  const bool gemma = config.traits().gemma;
  const char* name =
      gemma && fields.find("hidden_activation") != nullptr ? "hidden_activation" : "hidden_act";
  const std::string activation = fields.text(name, gemma ? "gelu_pytorch_tanh" : "silu");
  if (activation == "gelu_pytorch_tanh" || (config.family == Family::kGemma && activation == "gelu")) {
    config.activation = kernels::Activation::kGeluTanh;
  } else if (activation != "silu") {
    fields.fail(name, "one of [silu, gelu_pytorch_tanh]");
  }
}

// Options that would change the result, and that this decoder does not have.
void refuse_unsupported(JsonFields& fields) {
  if (fields.find("quantization_config") != nullptr)
    fields.fail("quantization_config", "no quantized weights (F32, F16 or BF16 only)");
  if (fields.boolean("use_bidirectional_attention", false))
    fields.fail("use_bidirectional_attention", "false (every token sees those before it)");
}

// Where config.json does not say; 0: it must.
int usual_head_dim(const ModelConfig& config) {
  if (config.traits().gemma) return 256;
  if (config.family == Family::kQwen3) return 128;
  return config.hidden_size % config.num_heads == 0 ? config.hidden_size / config.num_heads : 0;
}

void read_dimensions(JsonFields& fields, ModelConfig& config) {
  config.hidden_size = fields.integer("hidden_size", 1, 1 << 17);
  config.intermediate_size = fields.integer("intermediate_size", 1, 1 << 20);
  config.num_layers = fields.integer("num_hidden_layers", 1, 1024);
  config.num_heads = fields.integer("num_attention_heads", 1, 1024);
  config.num_kv_heads = fields.integer("num_key_value_heads", 1, 1024, config.num_heads);
  config.vocab_size = fields.integer("vocab_size", 1, 1 << 24);
  config.max_positions = fields.integer("max_position_embeddings", 1, 1 << 28);
  config.rms_norm_eps =
      static_cast<float>(fields.number("rms_norm_eps", 0, 1, config.family == Family::kPhi3 ? 1e-5 : 1e-6));
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", config.traits().gemma);
  if (!fields.status().ok()) return;

  if (config.num_heads % config.num_kv_heads != 0)
    fields.fail("num_key_value_heads", fmt::format("a divisor of num_attention_heads {}", config.num_heads));
  const int usual = usual_head_dim(config);
  if (fields.find("head_dim") == nullptr && usual == 0)
    fields.fail("hidden_size", fmt::format("a multiple of num_attention_heads {}", config.num_heads));
  config.head_dim = fields.integer("head_dim", 2, 256, usual);
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
  const FamilyTraits& traits = config.traits();
  if (traits.qk_norm || traits.fused_projections || traits.post_norms)
    return fields.fail("kv_producer",
                       fmt::format("nothing: layers of {} do not share K and V", traits.title));
  if (config.qkv_bias) return fields.fail("attention_bias", "false where layers share K and V");
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

// Which layers have a window by rule of the family, where layer_types does not say.
bool is_usually_windowed(JsonFields& fields, const ModelConfig& config, int layer) {
  switch (config.family) {
    case Family::kQwen2:
    case Family::kQwen3:
      return layer >= fields.integer("max_window_layers", 0, 1024, config.family == Family::kQwen2 ? 28 : 36);
    case Family::kGemma2:
      return layer % 2 == 0;
    case Family::kGemma3:
      return (layer + 1) % fields.integer("sliding_window_pattern", 1, 1024, 6) != 0;
    default:
      return true;
  }
}

// The window of the layers that have one; 0: no layer has.
int read_window(JsonFields& fields, const ModelConfig& config) {
  constexpr int kMost = 1 << 28;
  if (!config.traits().windows) return 0;
  const bool qwen = config.family == Family::kQwen2 || config.family == Family::kQwen3;
  if (qwen && !fields.boolean("use_sliding_window", false)) return 0;
  // A null means no window; nothing at all what transformers has for the family.
  if (fields.contains("sliding_window") && fields.find("sliding_window") == nullptr) return 0;
  if (config.family == Family::kPhi3 && !fields.contains("sliding_window")) return 0;
  return static_cast<int>(fields.integer("sliding_window", 1, kMost, 4096));
}

void read_windows(JsonFields& fields, ModelConfig& config) {
  const int window = read_window(fields, config);
  const json::value* types = fields.find("layer_types");
  const std::string expected = fmt::format("full_attention{} for each of {} layers",
                                           window > 0 ? " or sliding_attention" : "", config.num_layers);
  if (types != nullptr &&
      (!types->is_array() || static_cast<int>(types->get_array().size()) != config.num_layers))
    return fields.fail("layer_types", expected);
  bool any = false;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    bool windowed = window > 0 && (types != nullptr || is_usually_windowed(fields, config, layer));
    if (types != nullptr) {
      const json::value& type = types->get_array()[layer];
      const std::string_view name = type.is_string() ? std::string_view(type.get_string()) : "";
      windowed = name == "sliding_attention";
      if ((!windowed && name != "full_attention") || (windowed && window == 0))
        return fields.fail("layer_types", expected,
                           fmt::format("layer {}: {}", layer, json::serialize(type)));
    }
    config.windows.push_back(windowed ? window : 0);
    any |= windowed;
  }
  if (!any) config.windows.clear();
}

// What Gemma's attention and head do to their scores.
void read_soft_caps(JsonFields& fields, ModelConfig& config) {
  if (!config.traits().post_norms) return;
  const bool gemma2 = config.family == Family::kGemma2;
  const auto cap = [&](const char* name, double usual) {
    const bool none = fields.find(name) == nullptr && (fields.contains(name) || !gemma2);
    return none ? 0.0f : static_cast<float>(fields.number(name, 1e-3, 1e6, usual));
  };
  config.query_scalar = fields.number("query_pre_attn_scalar", 1e-3, 1e6, 256.0);
  config.logit_soft_cap = cap("final_logit_softcapping", 30);
  config.attention_soft_cap = cap("attn_logit_softcapping", 50);
  if (!gemma2 && config.attention_soft_cap != 0) fields.fail("attn_logit_softcapping", "null");
}

// A scaling by a factor serves as many times the context; Gemma 3's max_position_embeddings counts that
// already, and so does whatever names the original context apart.
int served_positions(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  using Scaling = RopeConfig::Scaling;
  double positions = config.max_positions;
  if (config.family == Family::kGemma3) return config.max_positions;
  if (rope.scaling == Scaling::kLinear || rope.scaling == Scaling::kDynamic) positions *= rope.factor;
  if (rope.scaling == Scaling::kYarn) positions = std::max(positions, rope.original_positions * rope.factor);
  return static_cast<int>(std::min(positions, double{1 << 28}));
}

// transformers < 5: rope_theta beside rope_scaling; from 5 on: both in rope_parameters, which Gemma 3 has one
// for each type of layer.
Status read_rope(const json::object& object, const std::string& file, ModelConfig& config) {
  JsonFields fields(object, file);
  const bool gemma3 = config.family == Family::kGemma3;
  RopeContext context{.head_dim = config.head_dim,
                      .max_positions = config.max_positions,
                      .original_positions = fields.number("original_max_position_embeddings", 0, 1e9, 0.0),
                      .phi3 = config.family == Family::kPhi3};
  const auto read = [&](const json::object& from, const std::string& prefix, RopeConfig& rope) {
    JsonFields child(from, file, prefix);
    read_rope_scaling(child, context, rope);
    return child.status();
  };
  config.rope.theta = gemma3 ? 1e6 : 10000;
  LOWKEY_TRY(read(object, "", config.rope));  // rope_theta, partial_rotary_factor
  if (gemma3)
    config.local_rope = RopeConfig{.theta = fields.number("rope_local_base_freq", 1, 1e12, 10000.0)};
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const json::object* child = fields.child(name);
    if (child == nullptr) continue;
    const json::value* full = child->if_contains("full_attention");
    const json::value* sliding = child->if_contains("sliding_attention");
    if (full == nullptr && sliding == nullptr) {
      LOWKEY_TRY(read(*child, fmt::format("{}.", name), config.rope));
      continue;
    }
    if (full != nullptr && full->is_object())
      LOWKEY_TRY(read(full->get_object(), fmt::format("{}.full_attention.", name), config.rope));
    if (sliding == nullptr || !sliding->is_object()) continue;
    if (!config.local_rope) config.local_rope = config.rope;
    LOWKEY_TRY(read(sliding->get_object(), fmt::format("{}.sliding_attention.", name), *config.local_rope));
  }
  config.max_positions = served_positions(config);
  config.drop_idle_windows();
  return fields.status();
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

Result<ModelConfig> read_config(const json::object& object, const std::string& file) {
  ModelConfig config;
  JsonFields fields(object, file);
  read_family(fields, config);
  LOWKEY_TRY(fields.status());
  read_activation(fields, config);
  refuse_unsupported(fields);
  read_dimensions(fields, config);
  LOWKEY_TRY(fields.status());
  read_windows(fields, config);
  read_soft_caps(fields, config);
  read_layer_sharing(fields, config);
  LOWKEY_TRY(fields.status());
  LOWKEY_TRY(read_rope(object, file, config));
  read_token_ids(fields, config);
  LOWKEY_TRY(fields.status());
  return config;
}

Status read_generation_config(const json::object& object, const std::string& file, ModelConfig& config) {
  JsonFields fields(object, file);
  read_token_ids(fields, config);
  return fields.status();
}

}  // namespace lowkey::worker
