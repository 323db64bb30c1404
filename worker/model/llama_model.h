// The decoder of all families: pre-norm, RoPE, grouped-query attention over cache pages, a gated MLP (Touvron
// et al. 2023, "LLaMA", section 2.2), and what FamilyTraits and ModelConfig add.
#pragma once

#include <memory>
#include <span>

#include "worker/model/decoder_weights.h"
#include "worker/model/model.h"

namespace lowkey::worker {

// Thread rule: the step thread only.
class LlamaModel : public Model {
 public:
  LlamaModel(ModelConfig config, int rank, int size, DecoderWeights weights, kernels::Backend& backend);

  const ModelConfig& config() const override { return config_; }
  uint64_t packed_bytes() const override { return weights_.packed_bytes; }
  const WeightReport& weight_report() const override { return weights_.report; }
  int vocab_shard() const override { return weights_.vocab_rows; }
  bool draws_tokens() const override { return !backend_.host_accessible(); }

  Status forward(const Batch& batch, const kernels::PageLayout& layout, transport::DeviceComm& comm,
                 Deadline deadline, std::span<float> logits) override;

 private:
  // Everything a layer writes, for up to `capacity` rows; grown, never shrunk: no allocation in steady state.
  struct Activations {
    int capacity = 0;
    std::unique_ptr<kernels::Buffer> residual;  // [rows, hidden]
    std::unique_ptr<kernels::Buffer> normed;    // [rows, hidden]; also the output of o and down
    std::unique_ptr<kernels::Buffer> qkv;       // [rows, q + 2 kv]
    std::unique_ptr<kernels::Buffer> split;     // q [rows, ..], k, v: what attention wants
    std::unique_ptr<kernels::Buffer>
        shared_kv;  // shared K and V: k [rows, kv], v of every bank, until all have read
    std::unique_ptr<kernels::Buffer> attention;  // [rows, q]
    std::unique_ptr<kernels::Buffer> gate_up;    // [rows, 2 ffn]
    std::unique_ptr<kernels::Buffer> mlp;        // [rows, ffn]
  };

  static kernels::Tensor matrix(const std::unique_ptr<kernels::Buffer>& buffer, int rows, int cols) {
    return {.data = buffer->data(), .rows = rows, .cols = cols};
  }
  Status check(const Batch& batch, const kernels::PageLayout& layout, const transport::DeviceComm& comm,
               std::span<float> logits) const;
  void reserve(int rows);
  // A step that the backend can record: `step` becomes it, filled up, with arrays of this model's. False: it
  // stays as it is.
  bool fill_up(const kernels::PageLayout& layout, const transport::DeviceComm& comm, Batch* step);
  kernels::StepGraphs::Step graph_step(const Batch& step, const kernels::PageLayout& layout) const;
  // Where the calls of a step write its logits: `logits` itself, or the device.
  kernels::Tensor logits_tensor(const Batch& step, std::span<float> logits);
  // The calls of a step, up to the logits.
  Status compute(const Batch& step, const kernels::PageLayout& layout, transport::DeviceComm& comm,
                 Deadline deadline, const kernels::Tensor& logits);
  // What attention wants of a layer, rotated.
  struct Qkv {
    kernels::Tensor q, k, v;
  };
  // Behind the last layer that has K and V of its own only rows go on whose logits are wanted: one of a whole
  // prompt, none of a part of one.
  struct Wanted {
    int from = 0;    // layers from here on have those rows alone; in layer from - 1 they alone attend
    int layers = 0;  // that the step needs
    std::span<const kernels::SequenceSlice> sequences;  // of layers from - 1 on
  };
  Wanted wanted_of(const Batch& batch);
  Qkv own_qkv(int layer, const Batch& batch, std::span<const kernels::SequenceSlice> sequences);
  Qkv shared_qkv(int layer, const Batch& batch, bool wanted_alone);
  kernels::Tensor attend(int layer, const Batch& batch, const Wanted& wanted,
                         const kernels::PageLayout& layout);
  void spread_wanted(const Batch& batch, const kernels::Tensor& from, const kernels::Tensor& to);
  kernels::Tensor keep_wanted(const Batch& batch, const kernels::Tensor& attention, bool residual_too);
  Status mlp_block(const LayerWeights& layer, int rows, transport::DeviceComm& comm, Deadline deadline);
  const kernels::RopeTable& rope_of(int layer) const;
  static bool is_whole(const transport::DeviceComm& comm, const DeviceVector& post_norm);
  // residual += norm(all-reduce(partial)); without `post_norm` unnormed
  Status add_partial(const kernels::Tensor& partial, const DeviceVector& post_norm,
                     transport::DeviceComm& comm, Deadline deadline);
  // The same of x weight^T + bias.
  Status project(const kernels::Linear& weight, const DeviceVector& bias, const DeviceVector& post_norm,
                 const kernels::Tensor& x, transport::DeviceComm& comm, Deadline deadline);
  void write_logits(const kernels::Tensor& out);
  // Completes the step; `out`, of the batch's rows, goes to where it is wanted.
  Status deliver_logits(const Batch& batch, const kernels::Tensor& out, transport::DeviceComm& comm,
                        Deadline deadline, std::span<float> logits);
  Status draw_tokens(const Batch& batch, const kernels::Tensor& logits, int parts,
                     transport::DeviceComm& comm, Deadline deadline, std::span<float> undrawn);

  const ModelConfig config_;
  const int rank_;
  const int size_;
  const DecoderShape shape_;
  const DecoderWeights weights_;
  const kernels::RopeTable rope_;
  const kernels::RopeTable local_rope_;  // of layers with a window
  std::vector<int> bank_of_layer_;
  int last_owner_ = 0;  // the last layer that has K and V of its own
  kernels::Backend& backend_;
  Activations buffers_;
  // Of a step that is filled up.
  struct FilledUp {
    std::vector<int32_t> tokens, positions, logit_rows;
    std::vector<kernels::SequenceSlice> sequences;
  };
  FilledUp filled_;
  std::vector<kernels::SequenceSlice> wanted_slices_;
  std::vector<int32_t> wanted_positions_;
  std::unique_ptr<kernels::Buffer> logits_;  // where they cannot be written to where they are wanted; grown
  std::unique_ptr<kernels::Buffer> drawn_;   // grown
};

}  // namespace lowkey::worker
