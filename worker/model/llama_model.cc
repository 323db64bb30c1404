#include "worker/model/llama_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/trace.h"
#include "worker/model/weight_source.h"

namespace lowkey::worker {

using kernels::Tensor;

Result<std::unique_ptr<Model>> Model::load(const std::filesystem::path& model_dir, const ModelConfig& config,
                                           int tp_rank, int tp_size, kernels::Backend& backend) {
  LOWKEY_TRY(check_tensor_parallel(config, tp_rank, tp_size));
  LOWKEY_ASSIGN(reader, WeightSource::open(model_dir, config));
  LOWKEY_ASSIGN(weights, load_decoder_weights(config, *reader, tp_rank, tp_size, backend));
  return std::unique_ptr<Model>(new LlamaModel(config, tp_rank, tp_size, std::move(weights), backend));
}

LlamaModel::LlamaModel(ModelConfig config, int rank, int size, DecoderWeights weights,
                       kernels::Backend& backend)
    : config_(std::move(config)),
      rank_(rank),
      size_(size),
      shape_(config_, rank, size),
      weights_(std::move(weights)),
      rope_(config_.rope.table(config_.head_dim, config_.max_positions)),
      local_rope_(config_.local_rope.value_or(config_.rope).table(config_.head_dim, config_.max_positions)),
      backend_(backend) {
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    bank_of_layer_.push_back(config_.bank_of(layer));
    if (config_.owns_kv(layer)) last_owner_ = layer;
  }
}

Status LlamaModel::forward(const Batch& batch, const kernels::PageLayout& layout, transport::DeviceComm& comm,
                           Deadline deadline, std::span<float> logits) {
  LOWKEY_TRY(check(batch, layout, comm, logits));
  Batch step = batch;
  const bool recorded = fill_up(layout, comm, &step);
  reserve(static_cast<int>(step.tokens.size()));
  Tensor out = logits_tensor(step, logits);
  kernels::StepGraphs* const graphs = backend_.step_graphs();
  if (!recorded || graphs->begin(graph_step(step, layout))) {
    const Status made = compute(step, layout, comm, deadline, out);
    if (recorded) made.ok() ? graphs->end() : graphs->abandon();
    if (!made.ok()) return made;
  }
  if (batch.logit_rows.empty()) return comm.settle(deadline);
  out.rows = static_cast<int>(batch.logit_rows.size());
  return deliver_logits(batch, out, comm, deadline, logits);
}

Status LlamaModel::compute(const Batch& batch, const kernels::PageLayout& layout, transport::DeviceComm& comm,
                           Deadline deadline, const Tensor& logits) {
  const int rows = static_cast<int>(batch.tokens.size());
  const Tensor residual = matrix(buffers_.residual, rows, config_.hidden_size);
  backend_.embed(*weights_.embedding, batch.tokens, static_cast<int>(weights_.vocab.first),
                 config_.embedding_scale(), residual);
  if (comm.size() > 1) LOWKEY_TRY(comm.all_reduce_sum(residual, deadline));
  const Wanted wanted = wanted_of(batch);
  for (int i = 0; i < wanted.layers; ++i) {
    const TraceSpan span("layer", {"index", i});
    const LayerWeights& layer = weights_.layers[i];
    Tensor attention = attend(i, batch, wanted, layout);
    if (i + 1 >= wanted.from) attention = keep_wanted(batch, attention, i + 1 == wanted.from);
    if (attention.rows == 0) break;
    LOWKEY_TRY(project(*layer.o, layer.o_bias, layer.attention_post_norm, attention, comm, deadline));
    LOWKEY_TRY(mlp_block(layer, attention.rows, comm, deadline));
  }
  if (!batch.logit_rows.empty()) write_logits(logits);
  return {};
}

// Every sequence has one row and wants its logits; sums stay on the device. Rows are filled up at the end, so
// that those of the batch stay the first ones.
bool LlamaModel::fill_up(const kernels::PageLayout& layout, const transport::DeviceComm& comm, Batch* step) {
  const size_t rows = step->tokens.size();
  kernels::StepGraphs* const graphs = backend_.step_graphs();
  if (graphs == nullptr || step->tap != nullptr || (size_ > 1 && !comm.on_device()) ||
      step->sequences.size() != rows || step->logit_rows.size() != rows)
    return false;
  const int padded = graphs->padded_rows(graph_step(*step, layout));
  if (padded == 0) return false;
  filled_.tokens.assign(step->tokens.begin(), step->tokens.end());
  filled_.tokens.resize(padded, 0);
  filled_.positions.assign(step->positions.begin(), step->positions.end());
  filled_.positions.resize(padded, 0);
  filled_.logit_rows.resize(padded);
  std::iota(filled_.logit_rows.begin(), filled_.logit_rows.end(), 0);
  filled_.sequences.assign(step->sequences.begin(), step->sequences.end());
  for (int row = static_cast<int>(rows); row < padded; ++row)
    filled_.sequences.push_back({.first_row = row, .num_rows = 1});
  step->tokens = filled_.tokens;
  step->positions = filled_.positions;
  step->logit_rows = filled_.logit_rows;
  step->sequences = filled_.sequences;
  return true;
}

kernels::StepGraphs::Step LlamaModel::graph_step(const Batch& step, const kernels::PageLayout& layout) const {
  return {.owner = this,
          .layout = &layout,
          .num_q_heads = shape_.num_heads,
          .tokens = step.tokens,
          .positions = step.positions,
          .logit_rows = step.logit_rows,
          .sequences = step.sequences};
}

// The engine builds batches from checked requests; what is wrong here is a broken invariant.
Status LlamaModel::check(const Batch& batch, const kernels::PageLayout& layout,
                         const transport::DeviceComm& comm, std::span<float> logits) const {
  const size_t rows = batch.tokens.size();
  LOWKEY_CHECK(rows > 0 && batch.positions.size() == rows, "{} tokens, {} positions", rows,
               batch.positions.size());
  LOWKEY_CHECK(comm.size() == size_ && comm.rank() == rank_, "rank {} of {} in a group of {}", rank_, size_,
               comm.size());
  LOWKEY_CHECK(layout.num_banks == config_.num_banks() && layout.num_kv_heads == shape_.num_kv_heads &&
                   layout.head_dim == config_.head_dim,
               "layout of {} banks, {} heads of {}", layout.num_banks, layout.num_kv_heads, layout.head_dim);
  const size_t slices = !batch.gather_logits ? 1 : rank_ == 0 ? size_ : 0;
  LOWKEY_CHECK(logits.size() >= slices * batch.logit_rows.size() * weights_.vocab_rows, "room for {} logits",
               logits.size());
  LOWKEY_CHECK(batch.tap == nullptr || backend_.host_accessible(), "a tap on a device's tensors");
  for (const int32_t token : batch.tokens)
    if (token < 0 || token >= config_.vocab_size)
      return Error{Code::kInvalidArgument,
                   fmt::format("expected token ids from 0 to {}, found {}", config_.vocab_size - 1, token)};
  return {};
}

void LlamaModel::reserve(int rows) {
  if (rows <= buffers_.capacity) return;
  const int capacity = static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::max(rows, 16))));
  const auto allocate = [&](int cols) { return backend_.allocate(size_t(capacity) * cols * sizeof(float)); };
  const int qkv = shape_.q_features + 2 * shape_.kv_features;
  buffers_ = {};  // the old ones first: both at once would double the peak
  buffers_ = {.capacity = capacity,
              .residual = allocate(config_.hidden_size),
              .normed = allocate(config_.hidden_size),
              .qkv = allocate(qkv),
              .split = allocate(qkv),
              .shared_kv = config_.kv_producer.empty()
                               ? nullptr
                               : allocate(config_.num_banks() * 2 * shape_.kv_features),
              .attention = allocate(shape_.q_features),
              .gate_up = allocate(2 * shape_.ffn),
              .mlp = allocate(shape_.ffn)};
}

Status LlamaModel::mlp_block(const LayerWeights& layer, int rows, transport::DeviceComm& comm,
                             Deadline deadline) {
  const Tensor residual = matrix(buffers_.residual, rows, config_.hidden_size);
  const Tensor partial = matrix(buffers_.normed, rows, config_.hidden_size);
  const bool whole = is_whole(comm, layer.mlp_post_norm);
  backend_.gated_mlp({.norm = floats(layer.mlp_norm),
                      .epsilon = config_.rms_norm_eps,
                      .gate_up = layer.gate_up.get(),
                      .gate_up_bias = floats(layer.gate_up_bias),
                      .activation = config_.activation,
                      .down = layer.down.get(),
                      .down_bias = floats(layer.down_bias),
                      .accumulate = whole,
                      .x = residual,
                      .normed = partial,
                      .both = matrix(buffers_.gate_up, rows, 2 * shape_.ffn),
                      .hidden = matrix(buffers_.mlp, rows, shape_.ffn),
                      .y = whole ? residual : partial});
  return whole ? Status() : add_partial(partial, layer.mlp_post_norm, comm, deadline);
}

// Whether a block's result goes to the residual stream as it is.
bool LlamaModel::is_whole(const transport::DeviceComm& comm, const DeviceVector& post_norm) {
  return comm.size() == 1 && !post_norm;
}

Status LlamaModel::project(const kernels::Linear& weight, const DeviceVector& bias,
                           const DeviceVector& post_norm, const Tensor& x, transport::DeviceComm& comm,
                           Deadline deadline) {
  const bool whole = is_whole(comm, post_norm);
  const Tensor y = matrix(whole ? buffers_.residual : buffers_.normed, x.rows, config_.hidden_size);
  backend_.linear(weight, x, floats(bias), whole, y);
  return whole ? Status() : add_partial(y, post_norm, comm, deadline);
}

Status LlamaModel::add_partial(const Tensor& partial, const DeviceVector& post_norm,
                               transport::DeviceComm& comm, Deadline deadline) {
  LOWKEY_TRY(comm.all_reduce_sum(partial, deadline));
  if (post_norm) backend_.rms_norm(partial, floats(post_norm), config_.rms_norm_eps, partial);
  backend_.add(partial, matrix(buffers_.residual, partial.rows, config_.hidden_size));
  return {};
}

Tensor LlamaModel::logits_tensor(const Batch& step, std::span<float> logits) {
  Tensor out{
      .data = logits.data(), .rows = static_cast<int>(step.logit_rows.size()), .cols = weights_.vocab_rows};
  if (out.rows == 0 || (backend_.host_accessible() && !(step.gather_logits && size_ > 1))) return out;
  if (!logits_ || logits_->size() < out.bytes()) logits_ = backend_.allocate(out.bytes());
  out.data = logits_->data();
  return out;
}

void LlamaModel::write_logits(const Tensor& out) {
  const Tensor residual =
      matrix(buffers_.residual, out.rows, config_.hidden_size);  // keep_wanted() chose them
  const Tensor wanted = matrix(buffers_.normed, out.rows, config_.hidden_size);
  backend_.rms_norm(residual, floats(weights_.final_norm), config_.rms_norm_eps, wanted);
  backend_.linear(weights_.output_head(), wanted, nullptr, false, out);
  if (config_.logit_soft_cap > 0) backend_.soft_cap(config_.logit_soft_cap, out);
}

Status LlamaModel::deliver_logits(const Batch& batch, const Tensor& out, transport::DeviceComm& comm,
                                  Deadline deadline, std::span<float> logits) {
  const bool gather = batch.gather_logits && size_ > 1;
  if (!batch.draws.empty()) {
    Tensor all = out;
    if (gather) LOWKEY_TRY(comm.gather_on_device(out, &all, deadline));
    return draw_tokens(batch, all, gather ? size_ : 1, comm, deadline, logits);
  }
  if (gather) return comm.gather(out, logits, deadline);
  LOWKEY_TRY(comm.settle(deadline));
  if (out.data != logits.data())
    backend_.download(static_cast<const std::byte*>(out.data),
                      std::as_writable_bytes(logits.first(out.bytes() / sizeof(float))));
  for (int row = 0; row < out.rows; ++row)
    std::fill(logits.begin() + size_t(row) * out.cols + weights_.vocab.count,
              logits.begin() + size_t(row + 1) * out.cols, -std::numeric_limits<float>::infinity());
  return {};
}

// The tokens, and what logits they do not come from: `parts` pieces of the ranks' slices.
Status LlamaModel::draw_tokens(const Batch& batch, const Tensor& logits, int parts,
                               transport::DeviceComm& comm, Deadline deadline, std::span<float> undrawn) {
  const size_t bytes = batch.draws.size_bytes() / sizeof(kernels::TokenDraw) * sizeof(kernels::DrawnToken);
  if (!drawn_ || drawn_->size() < bytes) drawn_ = backend_.allocate(bytes);
  auto* drawn = reinterpret_cast<kernels::DrawnToken*>(drawn_->data());
  backend_.draw_tokens(logits, parts, config_.vocab_size, batch.draws, drawn);
  LOWKEY_TRY(comm.settle(deadline));
  backend_.download(drawn_->data(), std::as_writable_bytes(batch.drawn.first(batch.draws.size())));
  const int rows = logits.rows / parts;
  size_t next = 0;  // of the draws
  for (int row = 0; row < rows; ++row) {
    if (next < batch.draws.size() && batch.draws[next].row == row) {
      ++next;
      continue;
    }
    for (int part = 0; part < parts; ++part) {
      const size_t at = (size_t(part) * rows + row) * logits.cols;
      backend_.download(reinterpret_cast<const std::byte*>(logits.as<float>() + at),
                        std::as_writable_bytes(undrawn.subspan(at, logits.cols)));
    }
  }
  return {};
}

}  // namespace lowkey::worker
