// Plans that do not fit this rank: refused with a line, before the model or the memory sees them.
#include <gtest/gtest.h>

#include "kernels/ops/reference_backend.h"
#include "kvstore/recipe/resolve.h"
#include "transport/loopback/loopback_comm.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/executor.h"

namespace lowkey::worker {
namespace {

class CountingModel final : public Model {
 public:
  CountingModel() {
    config_.vocab_size = 8;
    config_.max_positions = 256;
  }
  const ModelConfig& config() const override { return config_; }
  uint64_t packed_bytes() const override { return 0; }
  int vocab_shard() const override { return 8; }
  Status forward(const Batch&, const kernels::PageLayout&, transport::DeviceComm&, Deadline,
                 std::span<float>) override {
    ++steps;
    return {};
  }
  int steps = 0;

 private:
  ModelConfig config_;
};

class ExecutorPlan : public testing::Test {
 protected:
  void start(const std::string& recipe_text) {
    const auto recipe = kvstore::parse_recipe("name: x\n" + recipe_text, "x").value();
    const auto cache = kvstore::resolve(
        recipe, nullptr, {.name = "x", .num_layers = 2, .num_kv_heads = 2, .head_dim = 16}, 0, 1);
    memory_ = kvstore::PageMemory::make(
                  cache.value().pages,
                  {.budget = 1 << 20, .archive = cache.value().archive_spec(), .max_tokens = 256})
                  .value();
    executor_ = std::make_unique<Executor>(ExecutorOptions{.backend = backend_.get()}, model_, *memory_,
                                           *comms_[0], ports_, metrics_);
  }

  // A sequence of `tokens` tokens from its start.
  static wire::PlannedSequence sequence(int tokens = 1) {
    wire::PlannedSequence planned;
    planned.set_sequence_id(1);
    for (int i = 0; i < tokens; ++i) planned.add_tokens(1);
    return planned;
  }
  std::string refusal(const std::vector<wire::PlannedSequence>& sequences) {
    wire::StepPlan plan;
    for (const auto& planned : sequences) *plan.add_sequences() = planned;
    const Status executed = executor_->execute(plan);
    return executed.ok() ? "executed" : executed.error().message;
  }
  template <class Change>
  std::string changed(int tokens, Change change) {
    wire::PlannedSequence planned = sequence(tokens);
    change(planned);
    return refusal({planned});
  }

  CountingModel model_;
  const std::unique_ptr<kernels::Backend> backend_ = kernels::make_reference_backend(kernels::DType::kBf16);
  std::vector<std::unique_ptr<transport::HostComm>> comms_ = transport::make_loopback_comms(1);
  EnginePorts ports_;
  monitoring::Metrics metrics_{{{"role", "worker"}, {"rank", "0"}}};
  std::unique_ptr<kvstore::PageMemory> memory_;
  std::unique_ptr<Executor> executor_;
};

TEST_F(ExecutorPlan, WhatFitsIsExecuted) {
  start("");
  EXPECT_EQ(refusal({sequence()}), "executed");
  EXPECT_EQ(model_.steps, 1);
}

TEST_F(ExecutorPlan, TokensPositionsAndSlotsAreTheModels) {
  start("");
  EXPECT_EQ(refusal({sequence(0)}), "step plan: sequence 1: no tokens");
  EXPECT_EQ(changed(1, [](auto& s) { s.set_tokens(0, 8); }), "step plan: sequence 1: token 8");
  EXPECT_EQ(changed(1, [](auto& s) { s.set_tokens(0, -1); }), "step plan: sequence 1: token -1");
  EXPECT_EQ(changed(1, [](auto& s) { s.set_first_position(256); }),
            "step plan: sequence 1: 1 tokens from position 256 and slot 0 on");
  EXPECT_EQ(changed(1, [](auto& s) { s.set_first_position(UINT32_MAX); }),
            "step plan: sequence 1: 1 tokens from position 4294967295 and slot 0 on");
  // Added up in 32 bits this would be slot 0.
  EXPECT_EQ(changed(1, [](auto& s) { s.set_first_slot(UINT32_MAX); }),
            "step plan: sequence 1: 1 tokens from position 0 and slot 4294967295 on");
  EXPECT_EQ(changed(1, [](auto& s) { s.set_tail(UINT32_MAX); }),
            "step plan: sequence 1: a tail beyond this rank's memory");
  EXPECT_EQ(model_.steps, 0);
}

TEST_F(ExecutorPlan, ASequenceHasOnePlaceInAPlan) {
  start("");
  EXPECT_EQ(refusal({sequence(), sequence()}), "step plan: sequence 1 twice");
  EXPECT_EQ(model_.steps, 0);
}

TEST_F(ExecutorPlan, NobodyChoosesTokensWhereTheRecipeDoesNot) {
  start("");
  const std::string expected = "step plan: sequence 1: tokens to choose, where none are chosen";
  EXPECT_EQ(changed(1, [](auto& s) { s.mutable_compaction(); }), expected);
  EXPECT_EQ(changed(1, [](auto& s) { s.mutable_scores(); }), expected);
}

TEST_F(ExecutorPlan, TokensAreChosenByScoresThatAreThere) {
  start(
      "tokens: {score: h2o, budget: {heavy: 0.25, recent: 0.25}}\n"
      "bits: {quantizer: affine, width: 2, group: 16, key: {axis: channel}, value: {axis: token}}\n"
      "hot: {flush: 32}\nstream: {prefill: exact}\n");
  const auto compaction = [&](uint32_t recent, uint32_t heavy) {
    return changed(8, [&](auto& s) {
      s.mutable_compaction()->set_recent(recent);
      for (int bank = 0; bank < 2; ++bank) {
        s.mutable_compaction()->add_heavy(heavy);
        s.mutable_compaction()->add_pages(0);
      }
    });
  };
  EXPECT_EQ(compaction(2, 2), "step plan: sequence 1: 2 + 2 of 8 tokens into 0 pages");
  EXPECT_EQ(compaction(UINT32_MAX, 1), "step plan: sequence 1: 4294967295 + 1 of 8 tokens into 0 pages");
  EXPECT_EQ(compaction(8, 0), "executed");
}

}  // namespace
}  // namespace lowkey::worker
