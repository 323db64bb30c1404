// Attention of a layer: what it is given, which rows of it are wanted, and what goes on from there.
#include <algorithm>
#include <limits>

#include "worker/model/llama_model.h"

namespace lowkey::worker {

using kernels::Tensor;

const kernels::RopeTable& LlamaModel::rope_of(int layer) const {
  return config_.window_of(layer) > 0 ? local_rope_ : rope_;
}

// Who looks on sees all rows of all layers.
LlamaModel::Wanted LlamaModel::wanted_of(const Batch& batch) {
  const bool watched = batch.tap != nullptr ||
                       std::ranges::any_of(batch.sequences, [](const kernels::SequenceSlice& sequence) {
                         return sequence.observer != nullptr;
                       });
  if (watched || batch.logit_rows.size() == batch.tokens.size())
    return {config_.num_layers, config_.num_layers, batch.sequences};
  wanted_slices_.assign(batch.sequences.begin(), batch.sequences.end());
  for (kernels::SequenceSlice& sequence : wanted_slices_) {
    const auto first = std::ranges::lower_bound(batch.logit_rows, sequence.first_row);
    const int row = first == batch.logit_rows.end() ? std::numeric_limits<int>::max() : *first;
    sequence.unwanted_rows = std::min(row - sequence.first_row, sequence.num_rows);
  }
  wanted_positions_.clear();
  for (const int32_t row : batch.logit_rows) wanted_positions_.push_back(batch.positions[row]);
  return {last_owner_ + 1, batch.logit_rows.empty() ? last_owner_ + 1 : config_.num_layers, wanted_slices_};
}

LlamaModel::Qkv LlamaModel::own_qkv(int index, const Batch& batch,
                                    std::span<const kernels::SequenceSlice> sequences) {
  const LayerWeights& layer = weights_.layers[index];
  const int rows = static_cast<int>(batch.tokens.size());
  const Tensor residual = matrix(buffers_.residual, rows, config_.hidden_size);
  const Tensor normed = matrix(buffers_.normed, rows, config_.hidden_size);
  const Tensor qkv = matrix(buffers_.qkv, rows, shape_.q_features + 2 * shape_.kv_features);
  // One row is already q, k, v one after the other; more rows are taken apart.
  float* split = (rows == 1 ? qkv : matrix(buffers_.split, rows, qkv.cols)).as<float>();
  const Tensor q{.data = split, .rows = rows, .cols = shape_.q_features};
  const Tensor k{.data = q.as<float>() + size_t(rows) * q.cols, .rows = rows, .cols = shape_.kv_features};
  const Tensor v{.data = k.as<float>() + size_t(rows) * k.cols, .rows = rows, .cols = shape_.kv_features};
  backend_.project_heads({.norm = floats(layer.attention_norm),
                          .epsilon = config_.rms_norm_eps,
                          .weight = layer.qkv.get(),
                          .bias = floats(layer.qkv_bias),
                          .q_norm = floats(layer.q_norm),
                          .k_norm = floats(layer.k_norm),
                          .rope = &rope_of(index),
                          .positions = batch.positions,
                          .sequences = sequences,
                          .x = residual,
                          .normed = normed,
                          .qkv = qkv,
                          .q = q,
                          .k = k,
                          .v = v});
  return {q, k, v};
}

// K is rotated once, by its owner; the layers that read it rotate their own q by the same positions.
LlamaModel::Qkv LlamaModel::shared_qkv(int index, const Batch& batch, bool wanted_alone) {
  const LayerWeights& layer = weights_.layers[index];
  const int rows = static_cast<int>(batch.tokens.size());
  const size_t bank_floats = size_t{2} * buffers_.capacity * shape_.kv_features;
  float* shared = reinterpret_cast<float*>(buffers_.shared_kv->data()) + bank_of_layer_[index] * bank_floats;
  const Tensor k{.data = shared, .rows = rows, .cols = shape_.kv_features};
  const Tensor v{.data = shared + size_t(rows) * k.cols, .rows = rows, .cols = shape_.kv_features};
  if (layer.kv) {
    const Tensor kv = matrix(buffers_.qkv, rows, 2 * shape_.kv_features);
    const Tensor normed = matrix(buffers_.normed, rows, config_.hidden_size);
    backend_.rms_norm(matrix(buffers_.residual, rows, config_.hidden_size), floats(layer.kv_norm),
                      config_.rms_norm_eps, normed);
    backend_.linear(*layer.kv, normed, nullptr, false, kv);
    backend_.copy_columns(kv, 0, k);
    backend_.copy_columns(kv, k.cols, v);
    backend_.rope(rope_of(index), batch.positions, k);
  }
  const Tensor q = matrix(buffers_.split, rows, shape_.q_features);
  const Tensor own =
      wanted_alone ? matrix(buffers_.qkv, static_cast<int>(batch.logit_rows.size()), q.cols) : q;
  const Tensor normed = matrix(buffers_.normed, own.rows, config_.hidden_size);
  backend_.rms_norm(matrix(buffers_.residual, own.rows, config_.hidden_size), floats(layer.attention_norm),
                    config_.rms_norm_eps, normed);
  backend_.linear(*layer.qkv, normed, nullptr, false, own);
  backend_.rope(rope_of(index), wanted_alone ? wanted_positions_ : batch.positions, own);
  if (wanted_alone) spread_wanted(batch, own, q);
  return {q, k, v};
}

// Wanted rows go back to where attention expects them.
void LlamaModel::spread_wanted(const Batch& batch, const Tensor& from, const Tensor& to) {
  const auto part = [](const Tensor& x, size_t first, size_t rows) {
    return Tensor{.data = x.as<float>() + first * x.cols, .rows = static_cast<int>(rows), .cols = x.cols};
  };
  const std::span<const int32_t> rows = batch.logit_rows;
  for (size_t first = 0, end; first < rows.size(); first = end) {
    for (end = first + 1; end < rows.size() && rows[end] == rows[end - 1] + 1;) ++end;
    backend_.copy_columns(part(from, first, end - first), 0, part(to, rows[first], end - first));
  }
}

Tensor LlamaModel::attend(int layer, const Batch& batch, const Wanted& wanted,
                          const kernels::PageLayout& layout) {
  const auto sequences = layer + 1 < wanted.from ? batch.sequences : wanted.sequences;
  const auto [q, k, v] = config_.kv_producer.empty() ? own_qkv(layer, batch, sequences)
                                                     : shared_qkv(layer, batch, layer >= wanted.from);
  if (batch.tap != nullptr) (*batch.tap)(layer, q, k, v);
  const Tensor attention = matrix(buffers_.attention, q.rows, shape_.q_features);
  const int bank = bank_of_layer_[layer];
  const auto readers = std::span(bank_of_layer_).first(wanted.layers).subspan(layer + 1);  // still to come
  backend_.attend({.layout = &layout,
                   .bank = bank,
                   .num_q_heads = shape_.num_heads,
                   .scale = config_.attention_scale(),
                   .window = config_.window_of(layer),
                   .soft_cap = config_.attention_soft_cap,
                   .q = q,
                   .k = k,
                   .v = v,
                   .out = attention,
                   .first_reader = config_.owns_kv(layer),
                   .last_reader = std::ranges::find(readers, bank) == readers.end(),
                   .sequences = sequences});
  return attention;
}

Tensor LlamaModel::keep_wanted(const Batch& batch, const Tensor& attention, bool residual_too) {
  const int wanted = static_cast<int>(batch.logit_rows.size());
  if (wanted == attention.rows) return attention;
  const Tensor kept = matrix(buffers_.split, wanted, attention.cols);
  backend_.gather_rows(attention, batch.logit_rows, kept);
  if (!residual_too) return kept;
  const Tensor residual = matrix(buffers_.normed, wanted, config_.hidden_size);
  backend_.gather_rows(matrix(buffers_.residual, attention.rows, residual.cols), batch.logit_rows, residual);
  backend_.copy_columns(residual, 0, matrix(buffers_.residual, wanted, residual.cols));
  return kept;
}

}  // namespace lowkey::worker
