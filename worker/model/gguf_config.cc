// The metadata of a GGUF file in the words of config.json.
#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "worker/model/gguf_blocks.h"
#include "worker/model/gguf_weights.h"

namespace lowkey::worker {

namespace json = boost::json;

namespace {

struct Architecture {
  std::string_view name, architecture;
};
constexpr std::array kArchitectures = {
    Architecture{"llama", "LlamaForCausalLM"},   Architecture{"qwen2", "Qwen2ForCausalLM"},
    Architecture{"qwen3", "Qwen3ForCausalLM"},   Architecture{"phi3", "Phi3ForCausalLM"},
    Architecture{"gemma", "GemmaForCausalLM"},   Architecture{"gemma2", "Gemma2ForCausalLM"},
    Architecture{"gemma3", "Gemma3ForCausalLM"},
};

// Metadata keys of one architecture, copied where they are there.
class Translation {
 public:
  Translation(const GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  json::object config() &&;

 private:
  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  std::optional<int64_t> integer(std::string_view name) const { return file_.header.integer(key(name)); }
  std::optional<double> number(std::string_view name) const { return file_.header.number(key(name)); }
  void copy_integer(std::string_view name, const char* ours) {
    if (const auto value = integer(name)) out_[ours] = *value;
  }
  void copy_number(std::string_view name, const char* ours) {
    if (const auto value = number(name)) out_[ours] = *value;
  }
  bool has(const std::string& tensor) const { return file_.header.tensors.contains(tensor); }
  json::value factors(const std::string& tensor) const;
  void add_dimensions();
  void add_rope();
  void add_layer_types();
  void add_scores();
  void add_tokens();

  const GgufFile& file_;
  const std::string architecture_;
  json::object out_;
};

json::value Translation::factors(const std::string& tensor) const {
  const auto found = file_.header.tensors.find(tensor);
  if (found == file_.header.tensors.end()) return nullptr;
  const int64_t count = found->second.shape.back();
  std::vector<float> values(static_cast<size_t>(count));
  if (found->second.shape.size() == 1)
    dequantize_gguf(found->second.type, file_.map.bytes().data() + found->second.begin, count, values.data());
  json::array list;
  for (const float value : values) list.push_back(value);
  return list;
}

void Translation::add_dimensions() {
  copy_integer("embedding_length", "hidden_size");
  copy_integer("feed_forward_length", "intermediate_size");
  copy_integer("block_count", "num_hidden_layers");
  copy_integer("attention.head_count", "num_attention_heads");
  copy_integer("attention.head_count_kv", "num_key_value_heads");
  copy_integer("context_length", "max_position_embeddings");
  copy_number("attention.layer_norm_rms_epsilon", "rms_norm_eps");
  const auto hidden = integer("embedding_length"), heads = integer("attention.head_count");
  if (const auto dim = integer("attention.key_length")) {
    out_["head_dim"] = *dim;
  } else if (hidden && heads && *heads > 0) {
    out_["head_dim"] = *hidden / *heads;
  }
  const auto embedding = file_.header.tensors.find("token_embd.weight");
  if (embedding != file_.header.tensors.end()) out_["vocab_size"] = embedding->second.shape.front();
  out_["tie_word_embeddings"] = !has("output.weight");
  out_["attention_bias"] = has("blk.0.attn_q.bias");
}

void Translation::add_rope() {
  copy_number("rope.freq_base", "rope_theta");
  copy_number("rope.freq_base_swa", "rope_local_base_freq");
  const auto dims = integer("rope.dimension_count");
  const json::value* head_dim = out_.if_contains("head_dim");
  if (dims && head_dim != nullptr && *dims < head_dim->get_int64() && *dims > 0)
    out_["partial_rotary_factor"] = static_cast<double>(*dims) / static_cast<double>(head_dim->get_int64());
  json::object scaling;
  const std::string* type = file_.header.text(key("rope.scaling.type"));
  if (has("rope_freqs.weight")) {  // llama3: the result of the scaling, one divisor for each frequency
    scaling = {{"rope_type", "longrope"}, {"attention_factor", 1.0}, {"factor", 1.0}};
    scaling["long_factor"] = scaling["short_factor"] = factors("rope_freqs.weight");
  } else if (has("rope_factors_long.weight")) {
    scaling = {{"rope_type", "longrope"}};
    scaling["long_factor"] = factors("rope_factors_long.weight");
    scaling["short_factor"] = factors("rope_factors_short.weight");
    if (const auto factor = number("rope.scaling.attn_factor")) scaling["attention_factor"] = *factor;
  } else if (type != nullptr && *type != "none") {
    scaling = {{"rope_type", *type}};
    if (const auto factor = number("rope.scaling.factor")) scaling["factor"] = *factor;
  }
  if (scaling.empty()) return;
  if (const auto original = integer("rope.scaling.original_context_length"))
    scaling["original_max_position_embeddings"] = *original;
  out_["rope_scaling"] = std::move(scaling);
}

// One truth value a layer, where the rule of the family is not enough.
void Translation::add_layer_types() {
  const auto found = file_.header.metadata.find(key("attention.sliding_window_pattern"));
  if (found == file_.header.metadata.end()) return;
  const auto* windowed = std::get_if<std::vector<int64_t>>(&found->second);
  if (windowed == nullptr) return;
  json::array types;
  for (const int64_t each : *windowed) types.push_back(each != 0 ? "sliding_attention" : "full_attention");
  out_["layer_types"] = std::move(types);
}

void Translation::add_scores() {
  const auto window = integer("attention.sliding_window");
  out_["sliding_window"] = window && *window > 0 ? json::value(*window) : json::value();
  copy_integer("attention.sliding_window_pattern", "sliding_window_pattern");
  add_layer_types();
  if (architecture_ == "llama" && window && *window > 0)
    out_["architectures"] = json::array{"MistralForCausalLM"};
  for (const char* cap : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    const auto value = number(cap);
    out_[cap] = value ? json::value(*value) : json::value();
  }
  // Not in the metadata: llama.cpp knows the 27B models by their layers.
  const auto layers = integer("block_count"), hidden = integer("embedding_length"),
             heads = integer("attention.head_count");
  const auto scale = number("attention.scale");
  const bool is_27b =
      (architecture_ == "gemma2" && layers == 46) || (architecture_ == "gemma3" && layers == 62);
  if (scale && *scale > 0) {
    out_["query_pre_attn_scalar"] = 1 / (*scale * *scale);
  } else if (is_27b && hidden && heads && *heads > 0) {
    out_["query_pre_attn_scalar"] = *hidden / *heads;
  } else if (const json::value* head_dim = out_.if_contains("head_dim")) {
    out_["query_pre_attn_scalar"] = *head_dim;
  }
}

// Files seldom name every token that ends an answer (a chat's turn, beside the text): like llama.cpp, the
// usual ones are known by their texts.
void Translation::add_tokens() {
  constexpr std::array<std::string_view, 9> kEnds = {
      "</s>",       "<eos>",      "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>",
      "<|eom_id|>", "<|im_end|>", "<|end|>",       "<end_of_turn>"};
  constexpr int64_t kControl = 3;  // of tokenizer.ggml.token_type
  if (const auto bos = file_.header.integer("tokenizer.ggml.bos_token_id")) out_["bos_token_id"] = *bos;
  json::array ends;
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    if (const auto id = file_.header.integer(key)) ends.push_back(*id);
  }
  const auto* tokens = file_.header.texts("tokenizer.ggml.tokens");
  const auto* types = file_.header.integers("tokenizer.ggml.token_type");
  for (size_t id = 0; tokens != nullptr && types != nullptr && id < std::min(tokens->size(), types->size());
       ++id)
    if ((*types)[id] == kControl && std::ranges::find(kEnds, (*tokens)[id]) != kEnds.end())
      ends.push_back(static_cast<int64_t>(id));
  if (!ends.empty()) out_["eos_token_id"] = std::move(ends);
}

json::object Translation::config() && {
  add_dimensions();
  add_rope();
  add_scores();
  add_tokens();
  return std::move(out_);
}

}  // namespace

Result<json::object> gguf_config(const GgufFile& file, const std::string& name) {
  const std::string* architecture = file.header.text("general.architecture");
  const auto found =
      std::ranges::find(kArchitectures, architecture == nullptr ? "" : *architecture, &Architecture::name);
  if (found == kArchitectures.end())
    return Error{
        Code::kBadInput,
        fmt::format("{}: 'general.architecture': expected one of [llama, qwen2, qwen3, phi3, gemma, gemma2, "
                    "gemma3], found {}",
                    name, architecture == nullptr ? "nothing" : "'" + *architecture + "'")};
  const std::string experts = *architecture + ".expert_count";
  if (const int64_t count = file.header.integer(experts).value_or(0); count > 0)
    return Error{Code::kBadInput, fmt::format("{}: '{}': expected a dense model (0 or nothing), found {}",
                                              name, experts, count)};
  json::object config = Translation(file, *architecture).config();
  if (!config.contains("architectures"))
    config["architectures"] = json::array{std::string(found->architecture)};
  return config;
}

}  // namespace lowkey::worker
