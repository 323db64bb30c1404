// Shapes of random models by name and by key.
#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <vector>

#include "worker/model/random_model.h"
#include "worker/model/random_parts.h"

namespace lowkey::worker {
namespace {

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
    c.rope.theta = 100000;
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
    c.rope = {
        .theta = 500000, .scaling = RopeConfig::Scaling::kLlama3, .factor = 32, .original_positions = 8192};
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

// What a shape says beside the fields of a config.
struct ShapeOptions {
  int share = 1;
  int window = 0;
};

Status set_shape_key(ModelConfig& config, ShapeOptions& options, std::string_view key,
                     std::string_view value) {
  const auto bad = [&](std::string_view expected) {
    return Error{Code::kUsage, fmt::format("shape: {}: expected {}, found '{}'", key, expected, value),
                 "random"};
  };
  if (key == "family") {
    const auto found = std::ranges::find(families(), value, &FamilyTraits::name);
    if (found == families().end()) {
      std::vector<std::string_view> names;  // a view of them is beyond clang 14
      for (const FamilyTraits& family : families()) names.push_back(family.name);
      return bad(fmt::format("one of [{}]", fmt::join(names, ", ")));
    }
    config.family = found->family;
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
  if (key == "share" || key == "window") {
    if (!is_number) return bad("a number from 1");
    (key == "share" ? options.share : options.window) = number;
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
                  "tied, share or window, found '{}'",
                  key),
      "random"};
}

// What the family decides, as in its published models.
void apply_family(ModelConfig& config, int window) {
  const FamilyTraits& traits = config.traits();
  config.qkv_bias = traits.qkv_bias;
  if (traits.gemma) config.activation = kernels::Activation::kGeluTanh;
  if (traits.post_norms) config.query_scalar = config.head_dim;
  if (config.family == Family::kGemma2) config.attention_soft_cap = 50, config.logit_soft_cap = 30;
  if (config.family == Family::kGemma3) config.local_rope = RopeConfig{};
  if (window == 0 || !traits.windows) return;
  const int every = config.family == Family::kGemma2 ? 2 : config.family == Family::kGemma3 ? 6 : 0;
  for (int layer = 0; layer < config.num_layers; ++layer)
    config.windows.push_back(every > 0 && (layer + 1) % every == 0 ? 0 : window);
}

}  // namespace

Result<ModelConfig> parse_shape(std::string_view text) {
  ModelConfig config = tiny_shape();
  ShapeOptions options;
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
    LOWKEY_TRY(set_shape_key(config, options, item.substr(0, equals), item.substr(equals + 1)));
  }
  constexpr int kMinVocab = kNumSpecial + kNumBytes;
  if (config.vocab_size < kMinVocab)
    return Error{Code::kUsage,
                 fmt::format("shape: vocab: expected at least {} (every byte, {} special tokens), found {}",
                             kMinVocab, kNumSpecial, config.vocab_size),
                 "random"};
  for (int layer = 0; options.share > 1 && layer < config.num_layers; ++layer)
    config.kv_producer.push_back(layer - layer % options.share);
  apply_family(config, options.window);
  return config;
}

}  // namespace lowkey::worker
