#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value_from.hpp>
#include <string>

#include "worker/model/random_parts.h"

namespace lowkey::worker {

namespace json = boost::json;

namespace {

json::array layer_types(const ModelConfig& c) {
  json::array types;
  for (int layer = 0; layer < c.num_layers; ++layer)
    types.push_back(c.window_of(layer) > 0 ? "sliding_attention" : "full_attention");
  return types;
}

void add_windows(const ModelConfig& c, json::object& o) {
  if (!c.traits().windows) return;
  const bool any = !c.windows.empty();
  o["sliding_window"] = any ? json::value(*std::ranges::max_element(c.windows)) : json::value();
  if (c.family == Family::kQwen2 || c.family == Family::kQwen3) o["use_sliding_window"] = any;
  if (any) o["layer_types"] = layer_types(c);
}

void add_gemma(const ModelConfig& c, json::object& o) {
  if (!c.traits().gemma) return;
  o["hidden_activation"] = "gelu_pytorch_tanh";
  if (!c.traits().post_norms) return;
  o["query_pre_attn_scalar"] = c.query_scalar;
  const auto cap = [](float value) { return value > 0 ? json::value(value) : json::value(); };
  o["attn_logit_softcapping"] = cap(c.attention_soft_cap);
  o["final_logit_softcapping"] = cap(c.logit_soft_cap);
  if (c.local_rope) o["rope_local_base_freq"] = c.local_rope->theta;
}

}  // namespace

// Of the scalings of RoPE only llama3 is known here: no shape has another.
json::object config_json(const ModelConfig& c) {
  json::object o{{"architectures", json::array{std::string(c.traits().architecture)}},
                 {"model_type", std::string(c.traits().model_type)},
                 {"hidden_size", c.hidden_size},
                 {"intermediate_size", c.intermediate_size},
                 {"num_hidden_layers", c.num_layers},
                 {"num_attention_heads", c.num_heads},
                 {"num_key_value_heads", c.num_kv_heads},
                 {"head_dim", c.head_dim},
                 {"vocab_size", c.vocab_size},
                 {"max_position_embeddings", c.max_positions},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", c.rope.theta},
                 {"hidden_act", c.traits().gemma ? "gelu_pytorch_tanh" : "silu"},
                 {"tie_word_embeddings", c.tie_word_embeddings},
                 {"torch_dtype", "bfloat16"},
                 {"bos_token_id", 0},
                 {"eos_token_id", 0}};
  if (c.rope.scaling == RopeConfig::Scaling::kLlama3)
    o["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", c.rope.factor},
                         {"low_freq_factor", c.rope.low_freq_factor},
                         {"high_freq_factor", c.rope.high_freq_factor},
                         {"original_max_position_embeddings", int64_t(c.rope.original_positions)}};
  if (!c.kv_producer.empty()) o["kv_producer"] = json::value_from(c.kv_producer);
  add_windows(c, o);
  add_gemma(c, o);
  return o;
}

}  // namespace lowkey::worker
