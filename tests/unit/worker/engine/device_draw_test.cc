// Tokens that are drawn where the logits lie are those that the host would have drawn; rows whose logits have
// rules, or whose alternatives are asked for, come to the host.
#include <gtest/gtest.h>

#include "tests/support/temp_folder.h"
#include "tests/unit/worker/engine/engine_replica.h"
#include "tests/unit/worker/engine/where.h"
#include "worker/model/random_model.h"

namespace lowkey::worker {
namespace {

class DeviceDraws : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto shape = parse_shape("tiny,layers=1");
    ASSERT_TRUE(shape.ok() && write_random_model(*shape, 5, folder_.path() / "tiny"));
  }

  EngineReplicaOptions options(bool device) {
    const auto dir = folder_.path() / "tiny";
    const ModelConfig config = std::move(ModelConfig::read(dir)).value();
    backends_ = std::make_shared<Backends>();
    EngineReplicaOptions options;
    options.kv_bytes = 4 << 20;
    options.model = [=, backends = backends_](int rank, int of) {
      return std::move(Model::load(dir, config, rank, of, backends->add(rank, device))).value();
    };
    options.backend = [backends = backends_](int rank) { return backends->latest.at(rank); };
    return options;
  }

  // Answers to one prompt under each of `samplings`, together.
  std::vector<Answer> answers(bool device, const std::vector<wire::SamplingParams>& samplings) {
    EngineReplica replica(options(device));
    std::vector<uint64_t> requests;
    for (const wire::SamplingParams& sampling : samplings)
      requests.push_back(replica.submit({5, 9, 2, 77, 31, 8}, 12, sampling));
    replica.run();
    std::vector<Answer> found;
    for (const uint64_t request : requests) found.push_back(replica.answer(request));
    return found;
  }
  size_t draws() const {
    return dynamic_cast<const testing::GuardedBackend&>(*backends_->latest.at(0)).draws();
  }
  void expect_same(const std::vector<wire::SamplingParams>& samplings) {
    const auto expected = answers(false, samplings), found = answers(true, samplings);
    for (size_t i = 0; i < samplings.size(); ++i) {
      EXPECT_EQ(found[i].error, "");
      EXPECT_EQ(found[i].tokens, expected[i].tokens) << samplings[i].ShortDebugString();
      ASSERT_EQ(found[i].events.size(), expected[i].events.size());
      for (size_t e = 0; e < found[i].events.size(); ++e)
        for (int t = 0; t < expected[i].events[e].logprobs_size(); ++t)
          EXPECT_EQ(found[i].events[e].logprobs(t).logprob(), expected[i].events[e].logprobs(t).logprob());
    }
  }
  static wire::SamplingParams sampled(double temperature, uint64_t seed) {
    wire::SamplingParams sampling = EngineReplica::greedy();
    sampling.set_ignore_eos(true);
    sampling.set_temperature(temperature);
    sampling.set_seed(seed);
    return sampling;
  }

  const testing::TempFolder folder_;
  std::shared_ptr<Backends> backends_;
};

TEST_F(DeviceDraws, AreTheHosts) {
  std::vector<wire::SamplingParams> samplings = {sampled(0, 1), sampled(1, 2), sampled(0.8, 3),
                                                 sampled(1.3, 4)};
  samplings[2].set_top_p(0.9);
  samplings[3].set_top_k(20);
  samplings[3].set_min_p(0.05);
  for (wire::SamplingParams& sampling : samplings) sampling.set_logprobs(true);
  expect_same(samplings);
  EXPECT_GE(draws(), 12u);  // a call per step
}

TEST_F(DeviceDraws, RowsWithRulesComeToTheHost) {
  std::vector<wire::SamplingParams> samplings(5, sampled(1, 11));
  samplings[0].set_repetition_penalty(1.3);
  samplings[1].add_bias_tokens(7);
  samplings[1].add_bias_values(3);
  samplings[2].set_logprobs(true);
  samplings[2].set_top_logprobs(3);
  samplings[3].set_min_tokens(6);
  samplings[3].add_stop_token_ids(9);
  samplings[4].set_prompt_logprobs(true);
  expect_same(samplings);
  EXPECT_LE(draws(), 12u);
  samplings.push_back(sampled(1, 12));  // beside one that need not
  expect_same(samplings);
  EXPECT_GE(draws(), 12u);
}

}  // namespace
}  // namespace lowkey::worker
