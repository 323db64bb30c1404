// A decoder model on one tensor-parallel rank: its shard of the weights, and the forward pass of one step.
// Split (Shoeybi et al. 2019, Megatron-LM): q/k/v, gate/up and the vocabulary by rows of the weight, o and
// down by columns with an all-reduce after each; the embedding is vocabulary-parallel, all-reduced too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>

#include "base/deadline.h"
#include "base/result.h"
#include "kernels/ops/backend.h"
#include "transport/device_comm.h"
#include "worker/model/model_config.h"
#include "worker/model/weight_report.h"

namespace lowkey::worker {

// Sees what every layer gives to attention, after RoPE: q [rows, heads * head_dim], k and v [rows, kv_heads *
// head_dim] of this rank, f32, valid during the call. Called for layers that own a bank and for those that
// read another's. Only where the backend's memory is the host's.
using AttentionTap = std::function<void(int layer, const kernels::Tensor& q, const kernels::Tensor& k,
                                        const kernels::Tensor& v)>;

// The rows of one step over all sequences; sequences' rows are adjacent, in order.
struct Batch {
  std::span<const int32_t> tokens;     // [rows]
  std::span<const int32_t> positions;  // [rows]
  std::span<const kernels::SequenceSlice> sequences;
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, ascending
  const AttentionTap* tap = nullptr;    // calibration looks on; null while serving
  bool gather_logits = false;           // rank 0 wants those of all ranks
  // Tokens drawn where the logits are (draws_tokens()): `row` counts logit_rows, ascending. Only where the
  // logits of all ranks come together; their rows of `logits` are not written. `drawn`: host memory.
  std::span<const kernels::TokenDraw> draws;
  std::span<kernels::DrawnToken> drawn;
};

class Model {
 public:
  // Maps the weight files and packs this rank's shard; pages of the files that belong to other ranks are
  // never touched. config.weights says what they are held in. Errors: kBadInput naming file, tensor, expected
  // and found; kUsage when tp_size does not divide the KV heads. `backend` outlives the model.
  static Result<std::unique_ptr<Model>> load(const std::filesystem::path& model_dir,
                                             const ModelConfig& config, int tp_rank, int tp_size,
                                             kernels::Backend& backend);
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual uint64_t packed_bytes() const = 0;  // weights held in memory on this rank
  // Whether `draws` of a batch are heeded: the logits lie on a device.
  virtual bool draws_tokens() const { return false; }
  virtual const WeightReport& weight_report() const {  // empty: nothing is held in few bits
    static const WeightReport kNothing;
    return kNothing;
  }
  virtual int vocab_shard()
      const = 0;  // logits per row on every rank: ceil(vocab / tp_size), last one padded

  // Runs all layers; writes `logits`, host memory: [logit_rows, vocab_shard()] f32 of this rank's vocabulary
  // slice, padding entries are -inf; or with gather_logits, on rank 0 alone, [ranks, logit_rows,
  // vocab_shard()], whose padding is anything. The step is complete on return. Collectives go through `comm`
  // with the deadline; an error means the step is lost.
  virtual Status forward(const Batch& batch, const kernels::PageLayout& layout, transport::DeviceComm& comm,
                         Deadline deadline, std::span<float> logits) = 0;
};

}  // namespace lowkey::worker
