// One rank's shard of a decoder's weights, packed by a backend.
#pragma once

#include <memory>
#include <vector>

#include "base/result.h"
#include "kernels/ops/backend.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"
#include "worker/model/weight_report.h"
#include "worker/model/weight_source.h"

namespace lowkey::worker {

// A vector of f32 (norm weight, bias) in backend memory; empty where the model has none.
using DeviceVector = std::unique_ptr<kernels::Buffer>;

inline const float* floats(const DeviceVector& vector) {
  return vector ? reinterpret_cast<const float*>(vector->data()) : nullptr;
}

struct LayerWeights {
  DeviceVector attention_norm;  // [hidden]
  // [(heads + 2 kv_heads) * head_dim, hidden], local heads: q, k, v; q alone in models whose layers share K
  // and V.
  std::unique_ptr<kernels::Linear> qkv;
  DeviceVector qkv_bias;
  DeviceVector q_norm, k_norm;  // [head_dim], of every head; families with qk_norm
  // Models whose layers share K and V: layers that own them have k and v here, of an input with a norm of its
  // own.
  std::unique_ptr<kernels::Linear> kv;
  DeviceVector kv_norm;                      // [hidden]
  std::unique_ptr<kernels::Linear> o;        // [hidden, heads * head_dim], local columns
  DeviceVector o_bias;                       // rank 0 only: the all-reduce adds it once
  DeviceVector attention_post_norm;          // [hidden], families with post_norms
  DeviceVector mlp_norm;                     // [hidden]
  std::unique_ptr<kernels::Linear> gate_up;  // [2 * ffn, hidden], local rows: gate, up
  DeviceVector gate_up_bias;
  std::unique_ptr<kernels::Linear> down;  // [hidden, ffn], local columns
  DeviceVector down_bias;                 // rank 0 only
  DeviceVector mlp_post_norm;             // [hidden], families with post_norms
};

struct DecoderWeights {
  Shard vocab;  // rows of embedding and head that are real; both have `vocab_rows`, the rest is zero
  int vocab_rows = 0;
  std::unique_ptr<kernels::Linear> embedding;
  std::unique_ptr<kernels::Linear> head;  // null when tied: the embedding is the head, held once
  DeviceVector final_norm;
  std::vector<LayerWeights> layers;
  uint64_t packed_bytes = 0;  // of everything above
  WeightReport report;

  const kernels::Linear& output_head() const { return head ? *head : *embedding; }
};

// The local sizes of rank `rank` of `size`.
struct DecoderShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int q_features = 0;   // num_heads * head_dim
  int kv_features = 0;  // num_kv_heads * head_dim
  int ffn = 0;

  DecoderShape(const ModelConfig& config, int rank, int size);
};

// kUsage unless `size` ranks can share the model: it must divide the KV heads, and each needs a part of the
// ffn.
Status check_tensor_parallel(const ModelConfig& config, int rank, int size);

// Bytes of one rank's weights in `dtype`, or in the few bits of config.weights (norms and biases in f32); a
// backend's padding comes on top. What a GGUF file has in blocks counts as `dtype`.
uint64_t weight_bytes(const ModelConfig& config, int rank, int size, kernels::DType dtype);

// Reads only this rank's rows and columns, packs them, and gives the files' pages back tensor by tensor.
// Errors: kBadInput naming file, tensor, expected and found. REQUIRES: check_tensor_parallel() is ok.
Result<DecoderWeights> load_decoder_weights(const ModelConfig& config, const WeightSource& reader, int rank,
                                            int size, kernels::Backend& backend);

}  // namespace lowkey::worker
