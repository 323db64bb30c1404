// What requests ask of the engine beside their distribution: when an answer may end, who comes first,
// log-probabilities of the prompt.
#include <gtest/gtest.h>

#include <random>

#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

using Tokens = std::vector<int32_t>;

wire::Submit request(uint64_t id, const Tokens& prompt, const wire::SamplingParams& sampling, int priority) {
  wire::Submit submit = submit_of(id, prompt, sampling);
  submit.set_priority(priority);
  return submit;
}

Tokens prompt_of(int length, int seed) {
  std::mt19937 random(seed);
  Tokens prompt(length);
  for (int32_t& token : prompt) token = 1 + random() % (CacheReadingModel::kVocab - 1);
  return prompt;
}

TEST(RequestParameters, NothingEndsBeforeMinTokens) {
  EngineReplica replica(small());
  int ended_early = 0;
  for (int seed = 0; seed < 20; ++seed) {
    const Tokens prompt = prompt_of(10, seed), plain = CacheReadingModel::answer(prompt, 60);
    wire::SamplingParams sampling = EngineReplica::greedy();
    sampling.set_min_tokens(40);
    const uint64_t id = replica.submit(prompt, 60, sampling);
    replica.run();
    const Tokens& tokens = replica.answer(id).tokens;
    ASSERT_GE(tokens.size(), 40u);
    EXPECT_EQ(std::find(tokens.begin(), tokens.begin() + 40, 0), tokens.begin() + 40);
    if (plain.size() >= 40 || plain.back() != 0) {
      EXPECT_EQ(tokens, plain);
      continue;
    }
    ++ended_early;  // the same up to there, then another token, and from there on what follows that
    const auto end = tokens.begin() + static_cast<ptrdiff_t>(plain.size()) - 1;
    EXPECT_TRUE(std::equal(tokens.begin(), end, plain.begin()));
    Tokens longer = prompt;
    longer.insert(longer.end(), tokens.begin(), end + 1);
    const Tokens rest = CacheReadingModel::answer(longer, 1, true);
    EXPECT_TRUE(rest[0] == 0 || rest[0] == end[1]);
  }
  EXPECT_GT(ended_early, 0);
}

TEST(RequestParameters, StopTokensWaitForMinTokensToo) {
  EngineReplica replica(small());
  const Tokens prompt = prompt_of(10, 3), plain = CacheReadingModel::answer(prompt, 12, true);
  wire::SamplingParams sampling = EngineReplica::greedy();
  sampling.set_ignore_eos(true);
  sampling.add_stop_token_ids(plain[4]);
  sampling.set_min_tokens(8);
  const uint64_t id = replica.submit(prompt, 12, sampling);
  replica.run();
  const Tokens& tokens = replica.answer(id).tokens;
  ASSERT_GE(tokens.size(), 8u);
  EXPECT_EQ(std::find(tokens.begin(), tokens.begin() + 8, plain[4]), tokens.begin() + 8);
}

TEST(RequestParameters, LowerPriorityNumbersStartFirst) {
  EngineReplicaOptions options = small();
  options.engine.scheduler.max_batch = 1;
  EngineReplica replica(options);
  wire::SamplingParams sampling = EngineReplica::greedy();
  sampling.set_max_tokens(10);
  sampling.set_ignore_eos(true);
  const std::vector<int> priorities{0, 5, 0, -3, 5};
  for (size_t i = 0; i < priorities.size(); ++i)
    ASSERT_TRUE(replica.try_submit(request(i + 1, prompt_of(5, 1), sampling, priorities[i])).ok());
  std::vector<uint64_t> order;
  while (order.size() < priorities.size()) {
    replica.step();
    for (uint64_t id = 1; id <= priorities.size(); ++id) {
      const bool ended = replica.answer(id).finish != wire::FINISH_NONE;
      if (ended && std::find(order.begin(), order.end(), id) == order.end()) order.push_back(id);
    }
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{4, 1, 3, 2, 5}));
  replica.run();
}

TEST(RequestParameters, TheHighestPriorityNumberGivesWay) {
  EngineReplicaOptions options = small();
  options.kv_bytes = 40 << 10;
  options.engine.scheduler.ladder = false;
  EngineReplica replica(options);
  wire::SamplingParams sampling = EngineReplica::greedy();
  sampling.set_max_tokens(100);
  sampling.set_ignore_eos(true);
  const std::vector<int> priorities{7, 0, 3};
  std::vector<Tokens> prompts;
  for (size_t i = 0; i < priorities.size(); ++i) {
    prompts.push_back(prompt_of(40, static_cast<int>(i)));
    ASSERT_TRUE(replica.try_submit(request(i + 1, prompts[i], sampling, priorities[i])).ok());
  }
  replica.run();
  ASSERT_GT(replica.metric(0, "lowkey_num_preemptions_total"), 0) << "the test needs too little memory";
  EXPECT_EQ(replica.answer(2).report().preemptions(), 0u);
  EXPECT_GT(replica.answer(1).report().preemptions(), 0u);
  for (size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(replica.answer(i + 1).tokens, CacheReadingModel::answer(prompts[i], 100, true));
}

// A token scores the same whether it was sampled or stands in a prompt.
TEST(RequestParameters, PromptsAreScoredAsTheirTokensWereWhenSampled) {
  for (const int ranks : {1, 2}) {
    EngineReplica replica(small(ranks));
    const Tokens prompt = prompt_of(20, 9);
    wire::SamplingParams sampling = EngineReplica::greedy();
    sampling.set_ignore_eos(true);
    sampling.set_logprobs(true);
    sampling.set_top_logprobs(3);
    const uint64_t id = replica.submit(prompt, 90, sampling);
    replica.run();
    std::vector<wire::TokenLogprob> sampled;
    std::vector<wire::TopLogprobs> tops;
    for (const auto& event : replica.answer(id).events) {
      sampled.insert(sampled.end(), event.logprobs().begin(), event.logprobs().end());
      tops.insert(tops.end(), event.top_logprobs().begin(), event.top_logprobs().end());
    }
    Tokens whole = prompt;
    whole.insert(whole.end(), replica.answer(id).tokens.begin(), replica.answer(id).tokens.end());
    sampling.set_prompt_logprobs(true);
    const uint64_t scoring = replica.submit(whole, 5, sampling), second = replica.submit(whole, 5, sampling);
    replica.run();
    EXPECT_EQ(replica.answer(second).tokens, replica.answer(scoring).tokens);
    size_t scored_too = 0;
    for (const auto& event : replica.answer(second).events) scored_too += event.prompt_logprobs_size();
    EXPECT_EQ(scored_too, whole.size() - 1);
    EXPECT_EQ(replica.answer(scoring).cached, 0u) << "logits of a cached prefix are not there";
    std::vector<wire::TokenLogprob> scored;
    std::vector<wire::TopLogprobs> scored_tops;
    for (const auto& event : replica.answer(scoring).events) {
      scored.insert(scored.end(), event.prompt_logprobs().begin(), event.prompt_logprobs().end());
      scored_tops.insert(scored_tops.end(), event.prompt_top_logprobs().begin(),
                         event.prompt_top_logprobs().end());
      EXPECT_LE(event.prompt_logprobs_size(), 33);
    }
    ASSERT_EQ(scored.size(), whole.size() - 1);
    for (size_t i = 0; i < scored.size(); ++i) EXPECT_EQ(scored[i].token(), whole[i + 1]);
    for (size_t i = 0; i < sampled.size(); ++i) {
      const size_t at = prompt.size() - 1 + i;
      EXPECT_EQ(scored[at].logprob(), sampled[i].logprob());
      EXPECT_EQ(scored_tops[at].SerializeAsString(), tops[i].SerializeAsString());
    }
    EXPECT_EQ(replica.answer(scoring).tokens, CacheReadingModel::answer(whole, 5, true));
  }
}

}  // namespace
}  // namespace lowkey::worker
