#include "worker/model/random_model.h"

#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>
#include <charconv>
#include <cmath>
#include <fstream>
#include <vector>

#include "base/safetensors/safetensors_header.h"
#include "kernels/page/dtype.h"

namespace lowkey::worker {

namespace json = boost::json;

namespace {

constexpr int kNumSpecial = 4;
constexpr std::array<const char*, kNumSpecial> kSpecial = {"<|endoftext|>", "<|im_start|>", "<|im_end|>",
                                                           "<|pad|>"};
constexpr int kNumBytes = 256;
constexpr const char* kChatTemplate =
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

ModelConfig tiny_shape() {
  ModelConfig c;
  c.hidden_size = 64;
  c.intermediate_size = 172;
  c.num_layers = 2;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.vocab_size = 512;
  c.max_positions = 1024;
  c.tie_word_embeddings = true;
  return c;
}

std::optional<ModelConfig> named_shape(std::string_view name) {
  ModelConfig c = tiny_shape();
  if (name == "tiny") return c;
  c.head_dim = 64;
  if (name == "135M") {
    c.num_layers = 30;
    c.hidden_size = 576;
    c.num_heads = 9;
    c.num_kv_heads = 3;
    c.intermediate_size = 1536;
    c.vocab_size = 49152;
    c.max_positions = 8192;
    c.rope_theta = 100000;
    return c;
  }
  if (name == "1B") {
    c.num_layers = 16;
    c.hidden_size = 2048;
    c.num_heads = 32;
    c.num_kv_heads = 8;
    c.intermediate_size = 8192;
    c.vocab_size = 128256;
    c.max_positions = 131072;
    c.rope_theta = 500000;
    c.rope_scaling = {RopeScaling::Type::kLlama3, 32, 1, 4, 8192};
    return c;
  }
  return std::nullopt;
}

struct ShapeKey {
  std::string_view name;
  int ModelConfig::*field;
};
constexpr std::array kShapeKeys = {
    ShapeKey{"layers", &ModelConfig::num_layers}, ShapeKey{"hidden", &ModelConfig::hidden_size},
    ShapeKey{"heads", &ModelConfig::num_heads},   ShapeKey{"kv_heads", &ModelConfig::num_kv_heads},
    ShapeKey{"head_dim", &ModelConfig::head_dim}, ShapeKey{"ffn", &ModelConfig::intermediate_size},
    ShapeKey{"vocab", &ModelConfig::vocab_size},  ShapeKey{"positions", &ModelConfig::max_positions},
};

Status set_shape_key(ModelConfig& config, int* share, std::string_view key, std::string_view value) {
  const auto bad = [&](std::string_view expected) {
    return Error{Code::kUsage, fmt::format("shape: {}: expected {}, found '{}'", key, expected, value),
                 "random"};
  };
  if (key == "family") {
    if (value != "llama" && value != "qwen2") return bad("llama or qwen2");
    config.family = value == "qwen2" ? Family::kQwen2 : Family::kLlama;
    return {};
  }
  if (key == "tied") {
    if (value != "0" && value != "1") return bad("0 or 1");
    config.tie_word_embeddings = value == "1";
    return {};
  }
  int number = 0;
  const auto [end, ec] = std::from_chars(value.data(), value.data() + value.size(), number);
  const bool is_number = ec == std::errc{} && end == value.data() + value.size() && number >= 1;
  if (key == "share") {
    if (!is_number) return bad("a number from 1");
    *share = number;
    return {};
  }
  for (const ShapeKey& known : kShapeKeys) {
    if (known.name != key) continue;
    if (!is_number) return bad("a number from 1");
    config.*known.field = number;
    return {};
  }
  return Error{
      Code::kUsage,
      fmt::format("shape: expected family, layers, hidden, heads, kv_heads, head_dim, ffn, vocab, positions, "
                  "tied or share, found '{}'",
                  key),
      "random"};
}

json::object config_json(const ModelConfig& c) {
  const bool qwen = c.family == Family::kQwen2;
  json::object o{{"architectures", {qwen ? "Qwen2ForCausalLM" : "LlamaForCausalLM"}},
                 {"model_type", qwen ? "qwen2" : "llama"},
                 {"hidden_size", c.hidden_size},
                 {"intermediate_size", c.intermediate_size},
                 {"num_hidden_layers", c.num_layers},
                 {"num_attention_heads", c.num_heads},
                 {"num_key_value_heads", c.num_kv_heads},
                 {"head_dim", c.head_dim},
                 {"vocab_size", c.vocab_size},
                 {"max_position_embeddings", c.max_positions},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", c.rope_theta},
                 {"hidden_act", "silu"},
                 {"tie_word_embeddings", c.tie_word_embeddings},
                 {"torch_dtype", "bfloat16"},
                 {"bos_token_id", 0},
                 {"eos_token_id", 0}};
  if (c.rope_scaling.type == RopeScaling::Type::kLlama3)
    o["rope_scaling"] = {
        {"rope_type", "llama3"},
        {"factor", c.rope_scaling.factor},
        {"low_freq_factor", c.rope_scaling.low_freq_factor},
        {"high_freq_factor", c.rope_scaling.high_freq_factor},
        {"original_max_position_embeddings", int64_t(c.rope_scaling.original_max_positions)}};
  if (!c.kv_producer.empty()) o["kv_producer"] = json::value_from(c.kv_producer);
  return o;
}

// The printable character that stands for a byte in byte-level vocabularies (Radford et al. 2019, GPT-2):
// printable Latin-1 stands for itself, the rest for code points from 256 on.
std::string byte_symbol(int byte) {
  const auto printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += !printable(b);
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// 4 special tokens, 256 bytes, then fillers that only a model can produce: " t260", " t261", ...
json::object tokenizer_json(int vocab_size) {
  json::object vocab;
  json::array added;
  for (int id = 0; id < kNumSpecial; ++id) {
    vocab[kSpecial[id]] = id;
    added.push_back({{"id", id},
                     {"content", kSpecial[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  for (int byte = 0; byte < kNumBytes; ++byte) vocab[byte_symbol(byte)] = kNumSpecial + byte;
  for (int id = kNumSpecial + kNumBytes; id < vocab_size; ++id)
    vocab[byte_symbol(' ') + "t" + std::to_string(id)] = id;
  const json::object byte_level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", std::move(vocab)},
            {"merges", json::array{}}}}};
}

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

std::vector<RandomTensor> random_tensors(const ModelConfig& c) {
  const int q = c.num_heads * c.head_dim;
  const int kv = c.num_kv_heads * c.head_dim;
  const double logit_std = 2.5 / std::sqrt(c.hidden_size);  // of logits: 2.5 on inputs of unit size
  std::vector<RandomTensor> out;
  // Small beside what the layers add, or a tied head would repeat its input token.
  out.push_back(
      {"model.embed_tokens.weight", c.vocab_size, c.hidden_size, logit_std, 0, c.tie_word_embeddings});
  out.push_back({"model.norm.weight", c.hidden_size, 0, 0.1, 1});
  if (!c.tie_word_embeddings)
    out.push_back({"lm_head.weight", c.vocab_size, c.hidden_size, logit_std, 0, true});
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const auto linear = [&](const char* name, int rows, int cols, bool bias, double gain = 1) {
      out.push_back({prefix + name + ".weight", rows, cols, gain / std::sqrt(cols)});
      if (bias) out.push_back({prefix + name + ".bias", rows, 0, 0.1});
    };
    const bool bias = c.family == Family::kQwen2;
    linear("self_attn.q_proj", q, c.hidden_size, bias, kAttentionGain);
    if (c.owns_kv(i)) {
      linear("self_attn.k_proj", kv, c.hidden_size, bias, kAttentionGain);
      linear("self_attn.v_proj", kv, c.hidden_size, bias);
      if (!c.kv_producer.empty())
        out.push_back({prefix + "self_attn.kv_layernorm.weight", c.hidden_size, 0, 0.1, 1});
    }
    linear("self_attn.o_proj", c.hidden_size, q, false, kAttentionGain);
    linear("mlp.gate_proj", c.intermediate_size, c.hidden_size, false);
    linear("mlp.up_proj", c.intermediate_size, c.hidden_size, false);
    linear("mlp.down_proj", c.hidden_size, c.intermediate_size, false);
    out.push_back({prefix + "input_layernorm.weight", c.hidden_size, 0, 0.1, 1});
    out.push_back({prefix + "post_attention_layernorm.weight", c.hidden_size, 0, 0.1, 1});
  }
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

Result<ModelConfig> parse_shape(std::string_view text) {
  ModelConfig config = tiny_shape();
  int share = 1;
  for (bool first = true; first || !text.empty(); first = false) {
    const std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos) {
      const auto named = named_shape(item);
      if (!named || !first)
        return Error{Code::kUsage,
                     fmt::format("shape: expected 135M, 1B, tiny or key=value, found '{}'", item), "random"};
      config = *named;
      continue;
    }
    LOWKEY_TRY(set_shape_key(config, &share, item.substr(0, equals), item.substr(equals + 1)));
  }
  constexpr int kMinVocab = kNumSpecial + kNumBytes;
  if (config.vocab_size < kMinVocab)
    return Error{Code::kUsage,
                 fmt::format("shape: vocab: expected at least {} (every byte, {} special tokens), found {}",
                             kMinVocab, kNumSpecial, config.vocab_size),
                 "random"};
  for (int layer = 0; share > 1 && layer < config.num_layers; ++layer)
    config.kv_producer.push_back(layer - layer % share);
  return config;
}

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
