#include "kvstore/calibrate/train/frozen_decoder.h"

#include <cmath>
#include <limits>
#include <string>
#include <utility>

namespace lowkey::kvstore {

using kernels::Side;
using torch::Tensor;

namespace {

// Reads tensors; the first error is kept and makes later calls return nothing.
class WeightReader {
 public:
  explicit WeightReader(const TrainModel& model) : model_(model) {}

  Tensor matrix(const std::string& name, int64_t rows, int64_t cols) {
    if (!status_.ok()) return {};
    Result<std::vector<float>> values = model_.weight(name, rows, cols);
    if (!values.ok()) {
      status_ = values.error();
      return {};
    }
    return torch::from_blob(values->data(), {rows, cols}).clone();
  }
  Tensor vector(const std::string& name, int64_t size) {
    const Tensor one_row = matrix(name, 1, size);
    return one_row.defined() ? one_row[0] : one_row;
  }
  // The parts under each other.
  Tensor stacked(const std::string& prefix, std::vector<std::pair<const char*, int64_t>> parts, int64_t cols,
                 bool bias = false) {
    std::vector<Tensor> tensors;
    for (const auto& [name, rows] : parts) {
      tensors.push_back(bias ? vector(prefix + name + ".bias", rows)
                             : matrix(prefix + name + ".weight", rows, cols));
    }
    return status_.ok() ? torch::cat(tensors) : Tensor();
  }
  const Status& status() const { return status_; }

 private:
  const TrainModel& model_;
  Status status_;
};

}  // namespace

Result<FrozenDecoder> FrozenDecoder::load(const TrainModel& model) {
  FrozenDecoder decoder(model);
  WeightReader reader(model);
  decoder.embedding_ = reader.matrix("model.embed_tokens.weight", model.vocab_size, model.hidden_size);
  decoder.head_ =
      model.tied ? decoder.embedding_ : reader.matrix("lm_head.weight", model.vocab_size, model.hidden_size);
  decoder.final_norm_ = reader.vector("model.norm.weight", model.hidden_size);
  if (!reader.status().ok()) return reader.status().error();
  for (int i = 0; i < model.num_layers; ++i) {
    if (Status loaded = decoder.load_layer(i); !loaded.ok()) return loaded.error();
  }
  const Tensor frequency = torch::tensor(model.rope_inv_freq);
  const Tensor angle = torch::outer(torch::arange(model.max_positions, torch::kFloat32), frequency);
  decoder.cos_ = torch::cat({angle.cos(), angle.cos()}, 1);
  decoder.sin_ = torch::cat({angle.sin(), angle.sin()}, 1);
  return decoder;
}

Status FrozenDecoder::load_layer(int index) {
  const TrainModel& m = model_;
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int64_t q = int64_t{m.num_heads} * m.head_dim, kv = int64_t{m.num_kv_heads} * m.head_dim;
  const bool shared = !m.kv_producer.empty(), owns = !shared || m.kv_producer[index] == index;
  WeightReader reader(m);
  Layer layer;
  layer.attention_norm = reader.vector(prefix + "input_layernorm.weight", m.hidden_size);
  layer.mlp_norm = reader.vector(prefix + "post_attention_layernorm.weight", m.hidden_size);
  layer.q = reader.stacked(attention, {{"q_proj", q}}, m.hidden_size);
  if (owns) layer.kv = reader.stacked(attention, {{"k_proj", kv}, {"v_proj", kv}}, m.hidden_size);
  if (shared && owns) layer.kv_norm = reader.vector(attention + "kv_layernorm.weight", m.hidden_size);
  layer.o = reader.stacked(attention, {{"o_proj", m.hidden_size}}, q);
  layer.gate_up = reader.stacked(mlp, {{"gate_proj", m.intermediate_size}, {"up_proj", m.intermediate_size}},
                                 m.hidden_size);
  layer.down = reader.stacked(mlp, {{"down_proj", m.hidden_size}}, m.intermediate_size);
  if (m.qkv_bias) {
    layer.q_bias = reader.stacked(attention, {{"q_proj", q}}, 0, true);
    if (owns) layer.kv_bias = reader.stacked(attention, {{"k_proj", kv}, {"v_proj", kv}}, 0, true);
  }
  if (m.o_bias) layer.o_bias = reader.stacked(attention, {{"o_proj", m.hidden_size}}, 0, true);
  if (m.mlp_bias) {
    layer.gate_up_bias =
        reader.stacked(mlp, {{"gate_proj", m.intermediate_size}, {"up_proj", m.intermediate_size}}, 0, true);
    layer.down_bias = reader.stacked(mlp, {{"down_proj", m.hidden_size}}, 0, true);
  }
  layers_.push_back(std::move(layer));
  return reader.status();
}

Tensor FrozenDecoder::rms_norm(const Tensor& x, const Tensor& weight) const {
  return x * torch::rsqrt(x.square().mean(-1, /*keepdim=*/true) + model_.rms_norm_eps) * weight;
}

// [windows, tokens, count * head_dim] -> [windows, count, tokens, head_dim]
Tensor FrozenDecoder::heads(const Tensor& x, int count) const {
  return x.view({x.size(0), x.size(1), count, model_.head_dim}).transpose(1, 2);
}

// Split-half pairs, as kernels::Backend::rope.
Tensor FrozenDecoder::rotate(const Tensor& x, int64_t start) const {
  const int64_t end = start + x.size(2), half = model_.head_dim / 2;
  const Tensor turned = torch::cat({-x.slice(-1, half), x.slice(-1, 0, half)}, -1);
  return x * cos_.slice(0, start, end) + turned * sin_.slice(0, start, end);
}

FrozenDecoder::Bank FrozenDecoder::make_bank(const Layer& layer, int index, const Tensor& x, int64_t start,
                                             const CacheView& view) const {
  const Tensor kv = torch::linear(x, layer.kv, layer.kv_bias);
  const int64_t width = kv.size(-1) / 2;
  Bank bank;
  bank.k = rotate(heads(kv.slice(-1, 0, width), model_.num_kv_heads), start);
  bank.v = heads(kv.slice(-1, width), model_.num_kv_heads).contiguous();
  if (view.cache == nullptr) return bank;
  const auto with_sink = [&](const Tensor& exact, const Tensor& coded) {
    if (view.sink_tokens == 0) return coded;
    return torch::cat({exact.slice(2, 0, view.sink_tokens), coded.slice(2, view.sink_tokens)}, 2);
  };
  bank.coded_k = with_sink(bank.k, view.cache->code(index, Side::kKey, bank.k));
  bank.coded_v = with_sink(bank.v, view.cache->code(index, Side::kValue, bank.v));
  return bank;
}

// Coded rows for everybody, and inside every page the difference to the exact ones on top: a query's own
// page.
Tensor FrozenDecoder::attend(const Tensor& q, const Bank& bank, const CacheView& view) const {
  const int64_t windows = q.size(0), tokens = q.size(2), d = model_.head_dim, kv_heads = model_.num_kv_heads;
  const int64_t shared_by = model_.num_heads / kv_heads;
  const bool coded = view.cache != nullptr;
  const Tensor& keys = coded ? bank.coded_k : bank.k;
  const Tensor& values = coded ? bank.coded_v : bank.v;
  const int64_t page = coded ? view.page_tokens : tokens, pages = tokens / page;
  const Tensor queries =
      q.reshape({windows, kv_heads, shared_by * tokens, d}) / std::sqrt(static_cast<double>(d));
  Tensor scores = queries.matmul(keys.transpose(-1, -2));
  if (coded) {
    const Tensor missing = (bank.k - keys).view({windows, kv_heads, 1, pages, page, d});
    const Tensor extra =
        queries.view({windows, kv_heads, shared_by, pages, page, d}).matmul(missing.transpose(-1, -2));
    scores.view({windows, kv_heads, shared_by, pages, page, pages, page})
        .diagonal(0, 3, 5)
        .add_(extra.permute({0, 1, 2, 4, 5, 3}));
  }
  const Tensor future =
      torch::full({tokens, tokens}, -std::numeric_limits<float>::infinity()).triu(1).repeat({shared_by, 1});
  const Tensor weights = torch::softmax(scores + future, -1);
  Tensor out = weights.matmul(values);
  if (coded) {
    const Tensor own = weights.view({windows, kv_heads, shared_by, pages, page, pages, page})
                           .diagonal(0, 3, 5)
                           .permute({0, 1, 2, 5, 3, 4});
    const Tensor missing = (bank.v - values).view({windows, kv_heads, 1, pages, page, d});
    out = out + own.matmul(missing).reshape(out.sizes());
  }
  return out.view({windows, model_.num_heads, tokens, d}).transpose(1, 2).reshape({windows, tokens, -1});
}

Tensor FrozenDecoder::forward(const Window& window, const CacheView& view, int64_t first,
                              const Tap* tap) const {
  Tensor x = torch::embedding(embedding_, window.tokens);
  std::vector<Bank> banks(layers_.size());
  int next_bank = 0;
  for (int i = 0; i < model_.num_layers; ++i) {
    const Layer& layer = layers_[i];
    const int producer = model_.kv_producer.empty() ? i : model_.kv_producer[i];
    const Tensor normed = rms_norm(x, layer.attention_norm);
    if (producer == i) {
      const Tensor input = layer.kv_norm.defined() ? rms_norm(x, layer.kv_norm) : normed;
      banks[i] = make_bank(layer, next_bank, input, window.start, view);
      if (tap != nullptr) (*tap)(next_bank, banks[i].k, banks[i].v);
      ++next_bank;
    }
    const Tensor q =
        rotate(heads(torch::linear(normed, layer.q, layer.q_bias), model_.num_heads), window.start);
    x = x + torch::linear(attend(q, banks[producer], view), layer.o, layer.o_bias);
    const Tensor gate_up = torch::linear(rms_norm(x, layer.mlp_norm), layer.gate_up, layer.gate_up_bias);
    const std::vector<Tensor> halves = gate_up.chunk(2, -1);
    x = x + torch::linear(torch::silu(halves[0]) * halves[1], layer.down, layer.down_bias);
  }
  return torch::linear(rms_norm(x.slice(1, first), final_norm_), head_);
}

}  // namespace lowkey::kvstore
