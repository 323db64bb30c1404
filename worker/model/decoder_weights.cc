#include "worker/model/decoder_weights.h"

#include <array>
#include <string>

#include "worker/model/weight_loader.h"

namespace lowkey::worker {

using kernels::DType;

namespace {

// What a layer's rows are called and where they lie. Row and column splits as in Megatron-LM, figure 3.
class LayerParts {
 public:
  LayerParts(const ModelConfig& config, int index, int rank, int size)
      : fused_(config.traits().fused_projections),
        prefix_(fmt::format("model.layers.{}.", index)),
        q_(int64_t{config.num_heads} * config.head_dim),
        kv_(int64_t{config.num_kv_heads} * config.head_dim),
        ffn_(config.intermediate_size),
        q_shard_(even_shard(q_, rank, size)),
        kv_shard_(even_shard(kv_, rank, size)),
        ffn_shard_(balanced_shard(ffn_, rank, size)) {}

  std::string name(const char* tensor) const { return prefix_ + tensor; }
  int64_t q() const { return q_; }
  Shard q_shard() const { return q_shard_; }
  Shard ffn_shard() const { return ffn_shard_; }

  std::array<RowPart, 3> qkv(const char* what) const {
    return {part("self_attn.q_proj.", "self_attn.qkv_proj.", what, q_, q_shard_, 0, q_ + 2 * kv_),
            part("self_attn.k_proj.", "self_attn.qkv_proj.", what, kv_, kv_shard_, q_, q_ + 2 * kv_),
            part("self_attn.v_proj.", "self_attn.qkv_proj.", what, kv_, kv_shard_, q_ + kv_, q_ + 2 * kv_)};
  }
  std::array<RowPart, 2> gate_up(const char* what) const {
    return {part("mlp.gate_proj.", "mlp.gate_up_proj.", what, ffn_, ffn_shard_, 0, 2 * ffn_),
            part("mlp.up_proj.", "mlp.gate_up_proj.", what, ffn_, ffn_shard_, ffn_, 2 * ffn_)};
  }

 private:
  // The rows in a tensor of their own, or from `first` on in the one of all.
  RowPart part(const char* own, const char* fused, const char* what, int64_t rows, Shard shard, int64_t first,
               int64_t all) const {
    if (!fused_) return {prefix_ + own + what, rows, shard};
    return {prefix_ + fused + what, all, {first + shard.first, shard.count}};
  }

  bool fused_;
  std::string prefix_;
  int64_t q_, kv_, ffn_;
  Shard q_shard_, kv_shard_, ffn_shard_;
};

// Norm weights of one layer.
void load_norms(const ModelConfig& config, const LayerParts& parts, WeightLoader& loader,
                LayerWeights& layer) {
  const FamilyTraits& traits = config.traits();
  const auto norm = [&](const char* tensor, int size) {
    return loader.norm(parts.name(tensor), size, traits.gemma);
  };
  const int hidden = config.hidden_size;
  layer.attention_norm = norm("input_layernorm.weight", hidden);
  if (traits.qk_norm) {
    layer.q_norm = norm("self_attn.q_norm.weight", config.head_dim);
    layer.k_norm = norm("self_attn.k_norm.weight", config.head_dim);
  }
  if (!traits.post_norms) {
    layer.mlp_norm = norm("post_attention_layernorm.weight", hidden);
    return;
  }
  layer.attention_post_norm = norm("post_attention_layernorm.weight", hidden);
  layer.mlp_norm = norm("pre_feedforward_layernorm.weight", hidden);
  layer.mlp_post_norm = norm("post_feedforward_layernorm.weight", hidden);
}

LayerWeights load_layer(const ModelConfig& config, int index, int rank, int size, WeightLoader& loader) {
  const LayerParts parts(config, index, rank, size);
  const int64_t hidden = config.hidden_size;
  LayerWeights layer;
  load_norms(config, parts, loader, layer);
  const auto qkv = parts.qkv("weight");
  if (config.kv_producer.empty()) {
    layer.qkv = loader.rows("qkv", qkv, hidden);
  } else {
    layer.qkv = loader.rows("qkv", std::span(qkv).first(1), hidden);
    if (config.owns_kv(index)) {
      layer.kv = loader.rows("qkv", std::span(qkv).last(2), hidden);
      layer.kv_norm = loader.vector(parts.name("self_attn.kv_layernorm.weight"), hidden);
    }
  }
  layer.o = loader.columns("o", parts.name("self_attn.o_proj.weight"), hidden, parts.q(), parts.q_shard());
  layer.gate_up = loader.rows("gate_up", parts.gate_up("weight"), hidden);
  layer.down = loader.columns("down", parts.name("mlp.down_proj.weight"), hidden, config.intermediate_size,
                              parts.ffn_shard());
  if (config.qkv_bias) layer.qkv_bias = loader.vector(parts.qkv("bias"));
  if (config.output_bias && rank == 0)
    layer.o_bias = loader.vector(parts.name("self_attn.o_proj.bias"), hidden);
  if (config.mlp_bias) layer.gate_up_bias = loader.vector(parts.gate_up("bias"));
  if (config.mlp_bias && rank == 0) layer.down_bias = loader.vector(parts.name("mlp.down_proj.bias"), hidden);
  return layer;
}

}  // namespace

DecoderShape::DecoderShape(const ModelConfig& config, int rank, int size)
    : num_heads(config.num_heads / size),
      num_kv_heads(config.num_kv_heads / size),
      q_features(num_heads * config.head_dim),
      kv_features(num_kv_heads * config.head_dim),
      ffn(static_cast<int>(balanced_shard(config.intermediate_size, rank, size).count)) {}

Status check_tensor_parallel(const ModelConfig& config, int rank, int size) {
  LOWKEY_CHECK(rank >= 0 && rank < size, "rank {} of {}", rank, size);
  if (config.num_kv_heads % size != 0)
    return Error{Code::kUsage,
                 fmt::format("{}: tensor parallelism over {} ranks: expected a divisor of {} KV heads",
                             config.name, size, config.num_kv_heads)};
  if (config.intermediate_size < size)
    return Error{Code::kUsage, fmt::format("{}: tensor parallelism over {} ranks: expected at most {} (ffn)",
                                           config.name, size, config.intermediate_size)};
  return {};
}

uint64_t weight_bytes(const ModelConfig& config, int rank, int size, DType dtype) {
  const DecoderShape shape(config, rank, size);
  const uint64_t hidden = config.hidden_size;
  const uint64_t qkv = shape.q_features + 2 * shape.kv_features;
  const uint64_t banks = config.num_banks();
  const auto bytes = [&](std::string_view kind, uint64_t out, uint64_t in) {
    return matrix_bytes(out, in, rounded_bits(config.weights, kind), dtype);
  };
  uint64_t total = bytes(kEmbeddingKind, padded_shard(config.vocab_size, 0, size).count, hidden);
  if (!config.tie_word_embeddings)
    total += bytes(kHeadKind, padded_shard(config.vocab_size, 0, size).count, hidden);
  const uint64_t mlp = bytes("o", hidden, shape.q_features) + bytes("gate_up", 2 * shape.ffn, hidden) +
                       bytes("down", hidden, shape.ffn);
  total += config.num_layers * mlp;
  if (config.kv_producer.empty()) {
    total += config.num_layers * bytes("qkv", qkv, hidden);
  } else {  // only those that own k and v have them
    total += config.num_layers * bytes("qkv", shape.q_features, hidden) +
             banks * bytes("qkv", 2 * shape.kv_features, hidden);
  }
  uint64_t layer_f32 = (config.traits().post_norms ? 4 : 2) * hidden;
  if (config.traits().qk_norm) layer_f32 += 2 * config.head_dim;
  if (config.qkv_bias) layer_f32 += qkv;
  if (config.output_bias && rank == 0) layer_f32 += hidden;
  if (config.mlp_bias) layer_f32 += 2 * shape.ffn + (rank == 0 ? hidden : 0);
  const uint64_t kv_norms = config.kv_producer.empty() ? 0 : banks * hidden;
  return total + (hidden + config.num_layers * layer_f32 + kv_norms) * sizeof(float);
}

Result<DecoderWeights> load_decoder_weights(const ModelConfig& config, const WeightSource& reader, int rank,
                                            int size, kernels::Backend& backend) {
  WeightLoader loader(reader, config.weights, backend);
  DecoderWeights weights;
  weights.vocab = padded_shard(config.vocab_size, rank, size);
  weights.vocab_rows = static_cast<int>(padded_shard(config.vocab_size, 0, size).count);
  const auto vocab_rows = [&](const char* tensor, bool embedding) {
    const RowPart part{tensor, config.vocab_size, weights.vocab};
    return loader.rows(embedding ? kEmbeddingKind : kHeadKind, {&part, 1}, config.hidden_size,
                       weights.vocab_rows, embedding);
  };
  weights.embedding = vocab_rows("model.embed_tokens.weight", true);
  if (!config.tie_word_embeddings) weights.head = vocab_rows("lm_head.weight", false);
  weights.final_norm = loader.norm("model.norm.weight", config.hidden_size, config.traits().gemma);
  LOWKEY_TRY(loader.status());
  for (int i = 0; i < config.num_layers; ++i) {
    weights.layers.push_back(load_layer(config, i, rank, size, loader));
    LOWKEY_TRY(loader.status());
  }
  weights.packed_bytes = loader.packed_bytes();
  weights.report = loader.report();
  return weights;
}

}  // namespace lowkey::worker
