#include "worker/model/decoder_weights.h"

#include <array>
#include <cstring>
#include <optional>
#include <string>

#include "kernels/page/dtype.h"

namespace lowkey::worker {

using kernels::DType;
using kernels::Linear;

namespace {

// Some rows of some tensors, as they lie under each other in one packed matrix.
struct RowPart {
  std::string tensor;
  int64_t rows = 0;  // of the whole tensor
  Shard shard;       // those wanted
};

// Loads and packs. The first error is kept in status() and makes later calls return null. Owns the one
// staging buffer, reused over all layers.
class Loader {
 public:
  Loader(const SafetensorsReader& reader, kernels::Backend& backend) : reader_(reader), backend_(backend) {}

  const Status& status() const { return status_; }
  uint64_t packed_bytes() const { return packed_bytes_; }

  // The parts stacked, then zero rows up to `padded_rows`.
  std::unique_ptr<Linear> rows(std::span<const RowPart> parts, int64_t cols, int64_t padded_rows = 0,
                               bool embedding = false) {
    std::vector<TensorView> views;
    int64_t total = 0;
    for (const RowPart& part : parts) {
      const auto view = take(reader_.matrix(part.tensor, part.rows, cols));
      if (!view) return nullptr;
      SafetensorsReader::prefetch(*view, part.shard.first, part.shard.count);
      total += part.shard.count;
      views.push_back(*view);
    }
    const int64_t out = std::max(total, padded_rows);
    DType dtype = views[0].dtype;
    const std::byte* data = views[0].data + parts[0].shard.first * views[0].row_bytes();
    if (parts.size() > 1 || out > total) data = stack(parts, views, out, dtype);
    auto packed = embedding ? backend_.pack_embedding(data, dtype, out, cols, cols)
                            : backend_.pack_linear(data, dtype, out, cols, cols);
    for (const TensorView& view : views) SafetensorsReader::release(view);
    packed_bytes_ += packed->packed_bytes();
    return packed;
  }

  // Columns `shard` of a [rows, cols] tensor, read in place with a stride.
  std::unique_ptr<Linear> columns(const std::string& tensor, int64_t rows, int64_t cols, Shard shard) {
    const auto view = take(reader_.matrix(tensor, rows, cols));
    if (!view) return nullptr;
    SafetensorsReader::prefetch(*view, 0, rows);
    const std::byte* data = view->data + shard.first * kernels::dtype_bytes(view->dtype);
    auto packed = backend_.pack_linear(data, view->dtype, rows, shard.count, cols);
    SafetensorsReader::release(*view);
    packed_bytes_ += packed->packed_bytes();
    return packed;
  }

  // Elements of the parts (rows counted as elements), one after the other, as f32.
  DeviceVector vector(std::span<const RowPart> parts) {
    std::vector<float> values;
    for (const RowPart& part : parts) {
      const auto view = take(reader_.vector(part.tensor, part.rows));
      if (!view) return nullptr;
      for (int64_t i = 0; i < part.shard.count; ++i)
        values.push_back(kernels::load_element(view->data, view->dtype, part.shard.first + i));
    }
    DeviceVector result = backend_.allocate(values.size() * sizeof(float));
    backend_.upload(std::as_bytes(std::span(values)), result->data());
    packed_bytes_ += result->size();
    return result;
  }

  DeviceVector vector(const std::string& tensor, int64_t size) {
    const RowPart whole{tensor, size, {0, size}};
    return vector({&whole, 1});
  }

 private:
  std::optional<TensorView> take(Result<TensorView> view) {
    if (!status_.ok()) return std::nullopt;
    if (view.ok()) return *view;
    status_ = view.error();
    return std::nullopt;
  }

  // Copies the parts under each other; mixed dtypes meet as f32.
  const std::byte* stack(std::span<const RowPart> parts, std::span<const TensorView> views, int64_t rows,
                         DType& dtype) {
    for (const TensorView& view : views)
      if (view.dtype != dtype) dtype = DType::kF32;
    const int64_t cols = views[0].cols;
    const size_t row_bytes = cols * kernels::dtype_bytes(dtype);
    staging_.resize(rows * row_bytes);
    std::byte* to = staging_.data();
    for (size_t i = 0; i < parts.size(); ++i) {
      const std::byte* from = views[i].data + parts[i].shard.first * views[i].row_bytes();
      const size_t elements = parts[i].shard.count * cols;
      if (views[i].dtype == dtype) {
        std::memcpy(to, from, elements * kernels::dtype_bytes(dtype));
      } else {
        for (size_t e = 0; e < elements; ++e)
          kernels::store_element(to, dtype, e, kernels::load_element(from, views[i].dtype, e));
      }
      to += parts[i].shard.count * row_bytes;
    }
    std::memset(to, 0, staging_.data() + staging_.size() - to);
    return staging_.data();
  }

  const SafetensorsReader& reader_;
  kernels::Backend& backend_;
  Status status_;
  std::vector<std::byte> staging_;
  uint64_t packed_bytes_ = 0;
};

// All of one layer. Row and column splits as in Megatron-LM, figure 3.
LayerWeights load_layer(const ModelConfig& config, int index, int rank, int size, Loader& loader) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  const int64_t hidden = config.hidden_size;
  const int64_t q = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_dim;
  const Shard q_shard = even_shard(q, rank, size);
  const Shard kv_shard = even_shard(kv, rank, size);
  const Shard ffn = balanced_shard(config.intermediate_size, rank, size);
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const auto qkv_parts = [&](const char* what) {
    return std::array{RowPart{attention + "q_proj." + what, q, q_shard},
                      RowPart{attention + "k_proj." + what, kv, kv_shard},
                      RowPart{attention + "v_proj." + what, kv, kv_shard}};
  };
  const auto gate_up_parts = [&](const char* what) {
    return std::array{RowPart{mlp + "gate_proj." + what, config.intermediate_size, ffn},
                      RowPart{mlp + "up_proj." + what, config.intermediate_size, ffn}};
  };

  LayerWeights layer;
  layer.attention_norm = loader.vector(prefix + "input_layernorm.weight", hidden);
  if (config.kv_producer.empty()) {
    layer.qkv = loader.rows(qkv_parts("weight"), hidden);
  } else {
    const auto parts = qkv_parts("weight");
    layer.qkv = loader.rows(std::span(parts).first(1), hidden);
    if (config.owns_kv(index)) {
      layer.kv = loader.rows(std::span(parts).last(2), hidden);
      layer.kv_norm = loader.vector(attention + "kv_layernorm.weight", hidden);
    }
  }
  layer.o = loader.columns(attention + "o_proj.weight", hidden, q, q_shard);
  layer.mlp_norm = loader.vector(prefix + "post_attention_layernorm.weight", hidden);
  layer.gate_up = loader.rows(gate_up_parts("weight"), hidden);
  layer.down = loader.columns(mlp + "down_proj.weight", hidden, config.intermediate_size, ffn);
  if (config.attention_bias) layer.qkv_bias = loader.vector(qkv_parts("bias"));
  // Qwen2 has a bias on q, k and v alone.
  if (config.attention_bias && config.family == Family::kLlama && rank == 0)
    layer.o_bias = loader.vector(attention + "o_proj.bias", hidden);
  if (config.mlp_bias) layer.gate_up_bias = loader.vector(gate_up_parts("bias"));
  if (config.mlp_bias && rank == 0) layer.down_bias = loader.vector(mlp + "down_proj.bias", hidden);
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
  const uint64_t vocab = padded_shard(config.vocab_size, 0, size).count * hidden;
  const uint64_t layer = hidden * (qkv + shape.q_features + 3 * shape.ffn);
  const uint64_t banks = config.num_banks();
  uint64_t layer_f32 = 2 * hidden;
  if (config.attention_bias) layer_f32 += qkv;
  if (config.attention_bias && config.family == Family::kLlama && rank == 0) layer_f32 += hidden;
  if (config.mlp_bias) layer_f32 += 2 * shape.ffn + (rank == 0 ? hidden : 0);
  const uint64_t shared =
      (config.num_layers - banks) * hidden * 2 * shape.kv_features;  // k and v that are not there
  const uint64_t matrices = vocab * (config.tie_word_embeddings ? 1 : 2) + config.num_layers * layer - shared;
  const uint64_t kv_norms = config.kv_producer.empty() ? 0 : banks * hidden;
  return matrices * kernels::dtype_bytes(dtype) +
         (hidden + config.num_layers * layer_f32 + kv_norms) * sizeof(float);
}

Result<DecoderWeights> load_decoder_weights(const ModelConfig& config, const SafetensorsReader& reader,
                                            int rank, int size, kernels::Backend& backend) {
  Loader loader(reader, backend);
  DecoderWeights weights;
  weights.vocab = padded_shard(config.vocab_size, rank, size);
  weights.vocab_rows = static_cast<int>(padded_shard(config.vocab_size, 0, size).count);
  const auto vocab_rows = [&](const char* tensor, bool embedding) {
    const RowPart part{tensor, config.vocab_size, weights.vocab};
    return loader.rows({&part, 1}, config.hidden_size, weights.vocab_rows, embedding);
  };
  weights.embedding = vocab_rows("model.embed_tokens.weight", true);
  if (!config.tie_word_embeddings) weights.head = vocab_rows("lm_head.weight", false);
  weights.final_norm = loader.vector("model.norm.weight", config.hidden_size);
  LOWKEY_TRY(loader.status());
  for (int i = 0; i < config.num_layers; ++i) {
    weights.layers.push_back(load_layer(config, i, rank, size, loader));
    LOWKEY_TRY(loader.status());
  }
  weights.packed_bytes = loader.packed_bytes();
  return weights;
}

}  // namespace lowkey::worker
