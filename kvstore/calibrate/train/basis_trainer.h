// Trains the bases of a profile end to end against the frozen model (MatryoshkaKV, arXiv:2410.14731; with
// codes in the loop for profiles that quantize).
//
// Every step draws what is kept: every stored vector independently a prefix of its groups, uniform over 1 ..
// all (MatryoshkaKV's schedule), or with codes the widths of one of the profile's budgets. So one set of
// bases serves every budget. AdamW without decay, warm-up, cosine, gradients clipped at norm 1.
//
// Against the paper: one basis per KV head, used by all its query heads (the paper's code has one per query
// head and stores K and V per query head); X starts at 0 as a rotation of the initial basis, not at the
// inverse Cayley image of it.
#pragma once

#include "kvstore/calibrate/trainer.h"

namespace lowkey::kvstore {

class BasisTrainer : public Trainer {
 public:
  static constexpr int64_t kDefaultSteps = 300;
  static constexpr double kDefaultLearningRate = 2e-3;

  Result<Profile> train(const TrainModel& model, std::span<const std::vector<int32_t>> windows,
                        const Profile& initial, const TrainOptions& options,
                        const TrainWatcher& watcher) override;
  Result<std::vector<CodedLoss>> measure(const TrainModel& model,
                                         std::span<const std::vector<int32_t>> windows,
                                         const Profile& profile, std::span<const Budget> budgets,
                                         const TrainOptions& options) override;
};

}  // namespace lowkey::kvstore
