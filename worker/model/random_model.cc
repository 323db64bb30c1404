#include "worker/model/random_model.h"

#include <boost/json/serialize.hpp>
#include <cmath>
#include <fstream>
#include <vector>

#include "base/safetensors/safetensors_header.h"
#include "kernels/page/dtype.h"
#include "worker/model/random_parts.h"

namespace lowkey::worker {

namespace json = boost::json;

namespace {

constexpr const char* kChatTemplate =
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

struct RandomTensor {
  std::string name;
  int rows = 0;
  int cols = 0;  // 0: a vector
  double std = 0;
  double mean = 0;
  bool mute_end_of_text = false;  // row 0 zero: its logit is 0

  uint64_t elements() const { return uint64_t(rows) * std::max(cols, 1); }
};

// Attention that picks single tokens and counts beside the MLP: flat attention makes the next token a
// function of the last one alone, and greedy text a short cycle (of 64 tokens 4 distinct ones at gain 1, 6 at
// 2, 43 at 3).
constexpr double kAttentionGain = 3;
// Gemma scales embeddings up; with a tied head what layers add must outweigh them all the more.
constexpr double kLift = 4;

// All of one layer, appended.
void add_layer(const ModelConfig& c, int layer, std::vector<RandomTensor>& out) {
  const FamilyTraits& traits = c.traits();
  const int q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const auto linear = [&](const char* name, int rows, int cols, bool bias, double gain = 1) {
    out.push_back({prefix + name + ".weight", rows, cols, gain / std::sqrt(cols)});
    if (bias) out.push_back({prefix + name + ".bias", rows, 0, 0.1});
  };
  const auto norm = [&](const char* name, int size, double mean = 1) {
    out.push_back({prefix + name + ".weight", size, 0, 0.1, traits.gemma ? mean - 1 : mean});
  };
  const double lift = traits.gemma ? kLift : 1;
  if (traits.fused_projections) {
    linear("self_attn.qkv_proj", q + 2 * kv, c.hidden_size, false, kAttentionGain);
  } else {
    linear("self_attn.q_proj", q, c.hidden_size, c.qkv_bias, kAttentionGain);
    if (c.owns_kv(layer)) {
      linear("self_attn.k_proj", kv, c.hidden_size, c.qkv_bias, kAttentionGain);
      linear("self_attn.v_proj", kv, c.hidden_size, c.qkv_bias);
      if (!c.kv_producer.empty()) norm("self_attn.kv_layernorm", c.hidden_size);
    }
  }
  linear("self_attn.o_proj", c.hidden_size, q, false, kAttentionGain * lift);
  if (traits.fused_projections) {
    linear("mlp.gate_up_proj", 2 * c.intermediate_size, c.hidden_size, false);
  } else {
    linear("mlp.gate_proj", c.intermediate_size, c.hidden_size, false);
    linear("mlp.up_proj", c.intermediate_size, c.hidden_size, false);
  }
  linear("mlp.down_proj", c.hidden_size, c.intermediate_size, false, lift);
  norm("input_layernorm", c.hidden_size);
  norm("post_attention_layernorm", c.hidden_size, traits.post_norms ? lift : 1);
  if (traits.post_norms) {
    norm("pre_feedforward_layernorm", c.hidden_size);
    norm("post_feedforward_layernorm", c.hidden_size, lift);
  }
  if (!traits.qk_norm) return;
  norm("self_attn.q_norm", c.head_dim, kAttentionGain);
  norm("self_attn.k_norm", c.head_dim, kAttentionGain);
}

std::vector<RandomTensor> random_tensors(const ModelConfig& c) {
  const double logit_std = 2.5 / std::sqrt(c.hidden_size);  // of logits: 2.5 on inputs of unit size
  std::vector<RandomTensor> out;
  // Small beside what the layers add, or a tied head would repeat its input token.
  out.push_back(
      {"model.embed_tokens.weight", c.vocab_size, c.hidden_size, logit_std, 0, c.tie_word_embeddings});
  out.push_back({"model.norm.weight", c.hidden_size, 0, 0.1, c.traits().gemma ? 0.0 : 1.0});
  if (!c.tie_word_embeddings)
    out.push_back({"lm_head.weight", c.vocab_size, c.hidden_size, logit_std, 0, true});
  for (int i = 0; i < c.num_layers; ++i) add_layer(c, i, out);
  return out;
}

// Steele et al. 2014, "Fast splittable pseudorandom number generators".
uint64_t splitmix64(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// The sum of four 16-bit uniforms: near enough to a Gaussian (tails end at 3.46 sigma), one draw per value.
float approximate_normal(uint64_t& state) {
  constexpr float kScale = 1.0f / (65536.0f * 0.57735027f);  // each has variance 2^32 / 12
  const uint64_t bits = splitmix64(state);
  const auto sum =
      static_cast<int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
  return static_cast<float>(sum - 2 * 65535) * kScale;
}

void write_tensor(std::ofstream& out, const RandomTensor& tensor, uint64_t state) {
  constexpr uint64_t kChunk = 1 << 19;
  std::vector<uint16_t> chunk;
  const uint64_t muted = tensor.mute_end_of_text ? tensor.cols : 0;
  for (uint64_t at = 0; at < tensor.elements();) {
    chunk.resize(std::min(kChunk, tensor.elements() - at));
    for (uint16_t& value : chunk) {
      const float normal = approximate_normal(state);
      value = kernels::f32_to_bf16(at++ < muted ? 0.0f : float(tensor.mean) + float(tensor.std) * normal);
    }
    out.write(reinterpret_cast<const char*>(chunk.data()), std::streamsize(chunk.size() * sizeof(uint16_t)));
  }
}

Status write_weights(const ModelConfig& config, uint64_t seed, const std::filesystem::path& path) {
  const std::vector<RandomTensor> tensors = random_tensors(config);
  std::vector<TensorEntry> entries;
  uint64_t offset = 0;
  for (const RandomTensor& tensor : tensors) {
    const uint64_t end = offset + tensor.elements() * sizeof(uint16_t);
    TensorEntry& entry = entries.emplace_back(TensorEntry{tensor.name, "BF16", {tensor.rows}, offset, end});
    if (tensor.cols > 0) entry.shape.push_back(tensor.cols);
    offset = end;
  }
  std::ofstream out(path, std::ios::binary);
  const std::string header = format_safetensors_header(entries, {{"format", "pt"}});
  out.write(header.data(), std::streamsize(header.size()));
  for (const RandomTensor& tensor : tensors)
    write_tensor(out, tensor, hash128(tensor.name, Hash128{seed, 0}).lo);
  out.close();
  if (!out)
    return Error{Code::kInternal,
                 fmt::format("{}: expected {} bytes written, the disk refused", path.string(), offset)};
  return {};
}

Status write_json(const json::object& object, const std::filesystem::path& path) {
  std::ofstream out(path, std::ios::binary);
  out << json::serialize(object) << '\n';
  out.close();
  if (!out) return Error{Code::kInternal, fmt::format("{}: cannot be written", path.string())};
  return {};
}

}  // namespace

Status write_random_model(const ModelConfig& config, uint64_t seed, const std::filesystem::path& dir) {
  std::error_code ec;
  if (std::filesystem::exists(dir, ec) &&
      (!std::filesystem::is_directory(dir, ec) || !std::filesystem::is_empty(dir, ec)))
    return Error{Code::kUsage, fmt::format("{}: expected an empty or absent folder", dir.string()), "out"};
  std::filesystem::create_directories(dir, ec);
  if (ec) return Error{Code::kInternal, fmt::format("{}: {}", dir.string(), ec.message())};

  LOWKEY_TRY(write_json(config_json(config), dir / "config.json"));
  if (const auto read_back = ModelConfig::read(dir); !read_back.ok()) {
    std::filesystem::remove(dir / "config.json", ec);
    return Error{Code::kUsage, "shape is no model: " + read_back.error().message, "random"};
  }
  LOWKEY_TRY(write_json({{"bos_token_id", 0}, {"eos_token_id", 0}, {"pad_token_id", 3}},
                        dir / "generation_config.json"));
  LOWKEY_TRY(write_json(tokenizer_json(config.vocab_size), dir / "tokenizer.json"));
  LOWKEY_TRY(write_json({{"tokenizer_class", "PreTrainedTokenizerFast"},
                         {"bos_token", kSpecial[0]},
                         {"eos_token", kSpecial[0]},
                         {"pad_token", kSpecial[3]},
                         {"add_bos_token", false},
                         {"model_max_length", config.max_positions},
                         {"chat_template", kChatTemplate}},
                        dir / "tokenizer_config.json"));
  return write_weights(config, seed, dir / "model.safetensors");
}

}  // namespace lowkey::worker
