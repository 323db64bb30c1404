// config.json (and generation_config.json) of a Hugging Face model folder, checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/hash128.h"
#include "base/result.h"
#include "kernels/page/page_layout.h"

namespace lowkey::worker {

enum class Family : uint8_t { kLlama, kQwen2 };

struct RopeScaling {
  enum class Type : uint8_t { kNone, kLlama3 } type = Type::kNone;
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_max_positions = 0;
};

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
  int max_positions = 0;
  float rms_norm_eps = 1e-5f;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // bias of q, k, v (Qwen2: always)
  bool mlp_bias = false;
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;

  static Result<ModelConfig> read(const std::filesystem::path& model_dir);

  bool owns_kv(int layer) const { return kv_producer.empty() || kv_producer[layer] == layer; }
  int num_banks() const;         // layers that own K and V
  int bank_of(int layer) const;  // banks are numbered in the order of their producers

  // The cache of rank `rank` of `size`. REQUIRES: size divides num_kv_heads.
  kernels::CacheShape cache_shape(int tp_size, kernels::DType dtype) const;
  std::vector<float> rope_inv_freq() const;  // [head_dim / 2], scaling applied
};

// Identity of the weights: H(config.json, tensor names, shapes, dtypes and sampled content of every file).
// Equal on all ranks; part of every page's identity.
Result<Hash128> model_fingerprint(const std::filesystem::path& model_dir);

}  // namespace lowkey::worker
