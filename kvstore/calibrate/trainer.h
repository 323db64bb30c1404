// What `lowkey calibrate --train` asks of the training module, a shared object beside the executable that is
// built only where libtorch is (kTrainModule). Both are built from one tree with one compiler:
// kTrainInterface changes with this header, and another number is refused.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "kvstore/profile/profile.h"

namespace lowkey::kvstore {

inline constexpr int kTrainInterface = 2;
inline constexpr const char* kTrainModule = "liblowkey_train.so";

// A Llama-type decoder, whole. Its weights are read once, as f32.
struct TrainModel {
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_positions = 0;
  float rms_norm_eps = 1e-5f;
  std::vector<float> rope_inv_freq;  // [head_dim / 2], scaling applied
  std::vector<int> kv_producer;      // layer -> layer whose K and V it reads; empty: its own
  bool tied = false;                 // the embedding is the output head
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  // The tensor of this name in a Hugging Face folder, [rows, cols] (a vector: rows 1). kBadInput when it is
  // absent or of another shape.
  std::function<Result<std::vector<float>>(const std::string& name, int64_t rows, int64_t cols)> weight;
};

struct TrainOptions {
  int64_t steps = 0;  // optimizer steps; 0: the trainer's default
  int batch = 1;      // windows per step
  int threads = 1;
  uint64_t seed = 1;
  double learning_rate = 0;  // 0: the trainer's default
  // Loss = kl_weight KL(exact || coded) + (1 - kl_weight) next-token cross-entropy. MatryoshkaKV: 0.25. On
  // labels drawn from the exact model both terms have one expected gradient, and KL the one without noise.
  double kl_weight = 1;
  int sink_tokens = 4;   // exact, as the recipe has them
  int page_tokens = 32;  // a query's own page is exact
  // false: bases and means alone, nested ranks, no quantizer (MatryoshkaKV, arXiv:2410.14731); true: also
  // scales, with the embedded codes in the loop and widths drawn from the initial profile's budgets.
  bool quantize = true;
};

struct TrainProgress {
  int64_t step = 0, steps = 0;
  double loss = 0;  // nats per token
  double kl = 0;
};
// Called after every step from the calling thread; false stops early, with what there is.
using TrainWatcher = std::function<bool(const TrainProgress&)>;

// What a coded cache costs: against the exact cache, over the second half of every window's positions.
struct CodedLoss {
  double kl = 0;                  // nats per token
  double top1 = 0;                // share of positions with the same most likely token
  double nll = 0, exact_nll = 0;  // nats per token
};

class Trainer {
 public:
  virtual ~Trainer() = default;

  // The profile with trained bases, means and (quantize) scales; `basis` is "trained". Budgets are kept as
  // they are: the caller allocates anew, because a trained basis has other losses. `windows`: tokens of equal
  // length, in the order in which they are to be used (repeated when steps need more). Frozen model; the same
  // inputs give the same profile on one machine. Errors: kBadInput (the model's tensors), kUsage (what cannot
  // be trained).
  virtual Result<Profile> train(const TrainModel& model, std::span<const std::vector<int32_t>> windows,
                                const Profile& initial, const TrainOptions& options,
                                const TrainWatcher& watcher) = 0;

  // The loss of every budget in `budgets` with the bases of `profile`, whose own budgets do not matter.
  // Widths of kFullBits keep a group without the quantizer. Of the options: threads, sink and page tokens.
  virtual Result<std::vector<CodedLoss>> measure(const TrainModel& model,
                                                 std::span<const std::vector<int32_t>> windows,
                                                 const Profile& profile, std::span<const Budget> budgets,
                                                 const TrainOptions& options) = 0;
};

// Exported by the module with C linkage:
//   int lowkey_train_interface()                    its kTrainInterface
//   lowkey::kvstore::Trainer* lowkey_new_trainer()  a new one, the caller's to delete
using TrainInterfaceFunction = int (*)();
using NewTrainerFunction = Trainer* (*)();

}  // namespace lowkey::kvstore
