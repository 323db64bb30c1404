// A Llama-type decoder in torch whose weights are constants: gradients flow through its activations to what
// the cache does to K and V.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <vector>

#include "base/result.h"
#include "kvstore/calibrate/train/coded_cache.h"
#include "kvstore/calibrate/trainer.h"

namespace lowkey::kvstore {

class FrozenDecoder {
 public:
  // Errors: kBadInput of TrainModel::weight.
  static Result<FrozenDecoder> load(const TrainModel& model);

  // Tokens, int64 [windows, tokens], and the position of the first one.
  struct Window {
    torch::Tensor tokens;
    int64_t start = 0;
  };
  // What attention reads: the sink rows and a query's own page exact, the rest through `cache`.
  struct CacheView {
    const CodedCache* cache = nullptr;  // null: everything is exact
    int sink_tokens = 0;
    int page_tokens = 0;  // divides the window's tokens
  };
  // Sees K and V of a bank, [windows, kv_heads, tokens, head_dim].
  using Tap = std::function<void(int bank, const torch::Tensor& k, const torch::Tensor& v)>;

  // Logits of the tokens from `first` on: [windows, tokens - first, vocab].
  torch::Tensor forward(const Window& window, const CacheView& view, int64_t first = 0,
                        const Tap* tap = nullptr) const;

  const TrainModel& model() const { return model_; }

 private:
  struct Layer {
    torch::Tensor attention_norm, kv_norm, mlp_norm;
    torch::Tensor q, kv, o, gate_up, down;  // [out, in]; kv undefined where another's is read
    torch::Tensor q_bias, kv_bias, o_bias, gate_up_bias, down_bias;  // undefined where the model has none
  };
  // K and V of a bank: exact, and as read back.
  struct Bank {
    torch::Tensor k, v, coded_k, coded_v;
  };

  explicit FrozenDecoder(const TrainModel& model) : model_(model) {}
  Status load_layer(int index);
  torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight) const;
  torch::Tensor heads(const torch::Tensor& x, int count) const;
  torch::Tensor rotate(const torch::Tensor& x, int64_t start) const;
  Bank make_bank(const Layer& layer, int index, const torch::Tensor& x, int64_t start,
                 const CacheView& view) const;
  torch::Tensor attend(const torch::Tensor& q, const Bank& bank, const CacheView& view) const;

  TrainModel model_;
  torch::Tensor embedding_, head_, final_norm_, cos_, sin_, causal_;
  std::vector<Layer> layers_;
};

}  // namespace lowkey::kvstore
