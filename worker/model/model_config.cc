#include "worker/model/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "worker/model/config_reader.h"
#include "worker/model/gguf_weights.h"
#include "worker/model/json_fields.h"

namespace lowkey::worker {

namespace {

constexpr uint64_t kMaxConfigBytes = 1 << 20;  // real ones have 1-5 KB

Result<ModelConfig> read_gguf(const std::filesystem::path& path) {
  LOWKEY_ASSIGN(file, GgufFile::open(path));
  LOWKEY_ASSIGN(object, gguf_config(file, path.string()));
  LOWKEY_ASSIGN(config, read_config(object, path.string()));
  config.name = model_name(path);
  return config;
}

}  // namespace

WeightStorage parse_weight_storage(std::string_view name) {
  constexpr std::array<std::string_view, 4> kNames = {"auto", "full", "int8", "int4"};
  const auto found = std::ranges::find(kNames, name);
  LOWKEY_CHECK(found != kNames.end(), "weights '{}'", name);
  return static_cast<WeightStorage>(found - kNames.begin());
}

Result<ModelConfig> ModelConfig::read(const std::filesystem::path& model_dir) {
  std::error_code ec;
  if (is_gguf(model_dir)) return read_gguf(model_dir);
  if (!std::filesystem::is_directory(model_dir, ec))
    return Error{Code::kBadInput,
                 fmt::format("{}: expected a model folder or a GGUF file, found {}", model_dir.string(),
                             std::filesystem::exists(model_dir, ec) ? "something else" : "nothing")};
  const std::string file = (model_dir / "config.json").string();
  LOWKEY_ASSIGN(object, read_json_object(file, kMaxConfigBytes));
  LOWKEY_ASSIGN(config, read_config(object, file));
  config.name = model_name(model_dir);

  const std::filesystem::path generation = model_dir / "generation_config.json";
  if (!std::filesystem::exists(generation, ec)) return config;
  LOWKEY_ASSIGN(defaults, read_json_object(generation, kMaxConfigBytes));
  LOWKEY_TRY(read_generation_config(defaults, generation.string(), config));
  return config;
}

Status ModelConfig::limit_context(int positions) {
  if (positions == 0 || positions == max_positions) return {};
  if (positions > max_positions)
    return Error{Code::kUsage,
                 fmt::format("--max-context: expected at most {}, the context of {}, found {}", max_positions,
                             name, positions),
                 "max-context"};
  max_positions = positions;
  limited = true;
  drop_idle_windows();
  return {};
}

void ModelConfig::drop_idle_windows() {
  for (int& window : windows)
    if (window >= max_positions && !local_rope) window = 0;
  if (std::ranges::all_of(windows, [](int window) { return window == 0; })) windows.clear();
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

int ModelConfig::widest_window() const {
  int widest = 0;
  for (const int window : windows) {
    if (window == 0) return 0;
    widest = std::max(widest, window);
  }
  return widest;
}

float ModelConfig::attention_scale() const {
  return 1.0f / std::sqrt(static_cast<float>(query_scalar > 0 ? query_scalar : head_dim));
}

float ModelConfig::embedding_scale() const {
  return traits().gemma ? std::sqrt(static_cast<float>(hidden_size)) : 1.0f;
}

}  // namespace lowkey::worker
