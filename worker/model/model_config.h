// config.json (and generation_config.json) of a Hugging Face model folder, checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash128.h"
#include "base/result.h"
#include "kernels/ops/backend.h"
#include "kernels/page/page_layout.h"
#include "worker/model/family.h"
#include "worker/model/rope_config.h"

namespace lowkey::worker {

// What weight matrices are held in. kAuto: few bits where a GGUF file has them so (Q8_0, Q5_0, Q4_0 and
// Q4_K as they are, Q6_K rounded to 8 bits), else the backend's dtype, as kFull has it always. kInt8, kInt4:
// rounded when they are loaded (kernels/ops/few_bit_weights.h); embedding and output head are in 8 bits in
// both.
enum class WeightStorage : uint8_t { kAuto, kFull, kInt8, kInt4 };

// Of "auto", "full", "int8" and "int4". REQUIRES: one of them.
WeightStorage parse_weight_storage(std::string_view name);
// Are they rounded beyond what the model's files have?
constexpr bool rounds_weights(WeightStorage storage) {
  return storage == WeightStorage::kInt8 || storage == WeightStorage::kInt4;
}

// Field names follow config.json; units: elements unless said otherwise.
struct ModelConfig {
  std::string name;  // model id: the folder's name
  Family family = Family::kLlama;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  // Layer -> layer whose K and V it reads: itself or an earlier one that reads itself (Cross-Layer Attention,
  // arXiv:2405.12981; MLKV, arXiv:2406.09297). Empty: every layer its own.
  std::vector<int> kv_producer;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_positions = 0;  // that are served: where the scaling of RoPE says so more than config.json's
  bool limited = false;   // max_positions is less than the model's: see limit_context()
  float rms_norm_eps = 1e-5f;
  RopeConfig rope;
  std::optional<RopeConfig>
      local_rope;  // of layers with a window, where they have one of their own (Gemma 3)
  // Layer -> slots that a query sees, its own included; 0: all before it. Empty: all, in every layer.
  std::vector<int> windows;
  kernels::Activation activation = kernels::Activation::kSilu;
  double query_scalar = 0;       // scores are q . k / sqrt(query_scalar); 0: head_dim
  float attention_soft_cap = 0;  // of scores; 0: none
  float logit_soft_cap = 0;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool output_bias = false;  // of o
  bool mlp_bias = false;
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;
  WeightStorage weights = WeightStorage::kAuto;  // not config.json's: whoever serves decides

  static Result<ModelConfig> read(const std::filesystem::path& model_dir);

  // Serves contexts up to `positions` alone (0: as many as the model has): LongRoPE and dynamic NTK take the
  // frequencies of such a context, windows that hold all of it are none. kUsage when the model has fewer.
  Status limit_context(int positions);

  void drop_idle_windows();  // a window that holds every position is none

  bool owns_kv(int layer) const { return kv_producer.empty() || kv_producer[layer] == layer; }
  int num_banks() const;         // layers that own K and V
  int bank_of(int layer) const;  // banks are numbered in the order of their producers

  // The cache of rank `rank` of `size`. REQUIRES: size divides num_kv_heads.
  kernels::CacheShape cache_shape(int tp_size, kernels::DType dtype) const;

  const FamilyTraits& traits() const { return traits_of(family); }
  int window_of(int layer) const { return windows.empty() ? 0 : windows[layer]; }
  // Slots that any layer's query sees, its own included; 0: all. Pages wholly behind are read by nobody.
  int widest_window() const;
  const RopeConfig& rope_of(int layer) const {
    return local_rope && window_of(layer) > 0 ? *local_rope : rope;
  }
  float attention_scale() const;
  float embedding_scale() const;
};

// Identity of the weights: H(config.json, tensor names, shapes, dtypes and sampled content of every file).
// Equal on all ranks; part of every page's identity.
Result<Hash128> model_fingerprint(const std::filesystem::path& model_dir);
// The same of weights as they are held, and of the context that is served: what they compute is another
// model's.
Hash128 held_fingerprint(const Hash128& fingerprint, const ModelConfig& config);

}  // namespace lowkey::worker
