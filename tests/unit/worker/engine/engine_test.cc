#include "worker/engine/engine.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>

#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

TEST(Engine, AnswersOnEveryNumberOfRanks) {
  for (const int ranks : {1, 2, 4}) {
    EngineReplica replica(small(ranks));
    std::mt19937 random(1);
    for (const int length : {1, 15, 16, 17, 64, 65, 200}) {
      const auto prompt = random_prompt(random, length);
      EXPECT_EQ(replica.complete(prompt, 40), CacheReadingModel::answer(prompt, 40))
          << length << " on " << ranks;
    }
  }
}

TEST(Engine, ChunkingAndBatchMatesChangeNothing) {
  for (const int budget : {1, 2, 7, 64, 512}) {
    EngineReplicaOptions options = small(2);
    options.engine.scheduler.step_tokens = budget;
    EngineReplica replica(options);
    std::mt19937 random(budget);
    std::map<uint64_t, std::vector<int32_t>> prompts;
    for (int i = 0; i < 30; ++i) {
      auto prompt = random_prompt(random, 1 + random() % 90);
      const uint64_t id = replica.submit(prompt, 25);
      prompts[id] = std::move(prompt);
    }
    replica.run();
    for (const auto& [id, prompt] : prompts)
      EXPECT_EQ(replica.answer(id).tokens, CacheReadingModel::answer(prompt, 25));
    EXPECT_LE(replica.largest_step(), budget);
  }
}

TEST(Engine, PreemptionChangesNothing) {
  for (const int sink : {0, 4}) {
    EngineReplicaOptions options = small(2);
    options.spec.sink_tokens = sink;
    options.kv_bytes = 64 << 10;  // a few sequences' worth
    EngineReplica replica(options);
    std::mt19937 random(3);
    std::map<uint64_t, std::vector<int32_t>> prompts;
    for (int i = 0; i < 40; ++i) {
      auto prompt = random_prompt(random, 1 + random() % 40);
      prompts[replica.submit(prompt, 80, EngineReplica::greedy())] = prompt;
    }
    replica.run();
    for (const auto& [id, prompt] : prompts)
      EXPECT_EQ(replica.answer(id).tokens, CacheReadingModel::answer(prompt, 80));
    EXPECT_GT(replica.metric(0, "lowkey_num_preemptions_total"), 0);
    EXPECT_GT(replica.metric(0, "lowkey_recomputed_tokens_total", "preemption"), 0);
  }
}

TEST(Engine, ASecondEqualPromptHitsTheDevice) {
  EngineReplica replica(small(2));
  std::mt19937 random(4);
  const auto prompt = random_prompt(random, 100);
  const auto first = replica.complete(prompt, 20);
  const uint64_t second = replica.submit(prompt, 20);
  replica.run();
  EXPECT_EQ(replica.answer(second).tokens, first);
  EXPECT_EQ(replica.answer(second).cached, 96u) << "six whole pages";
  EXPECT_EQ(replica.answer(second).cached_store, 0u);
  const auto whole_pages = std::vector<int32_t>(prompt.begin(), prompt.begin() + 96);
  const uint64_t third = replica.submit(whole_pages, 20);
  replica.run();
  EXPECT_EQ(replica.answer(third).cached, 80u) << "the last token is always computed";
  EXPECT_EQ(replica.answer(third).tokens, CacheReadingModel::answer(whole_pages, 20));
}

TEST(Engine, SaltsShareNothing) {
  EngineReplica replica(small());
  std::mt19937 random(5);
  const auto prompt = random_prompt(random, 100);
  replica.complete(prompt, 2);
  ASSERT_TRUE(replica.try_submit(1000, prompt, 2, EngineReplica::greedy(), "alice").ok());
  replica.run();
  EXPECT_EQ(replica.answer(1000).cached, 0u);
}

TEST(Engine, CancelTakesEffectInTheNextStep) {
  EngineReplica replica(small());
  const uint64_t id = replica.submit({5, 6, 7}, 1000);
  for (int i = 0; i < 3; ++i) replica.step();
  replica.engine().cancel(id);
  replica.step();
  EXPECT_EQ(replica.answer(id).finish, wire::FINISH_CANCELLED);
  replica.run();
}

TEST(Engine, FinishReasons) {
  EngineReplica replica(small());
  std::mt19937 random(10);
  wire::SamplingParams ignoring = EngineReplica::greedy();
  ignoring.set_ignore_eos(true);
  bool stopped = false;
  for (int i = 0; i < 20; ++i) {
    const auto prompt = random_prompt(random, 5);
    const uint64_t plain = replica.submit(prompt, 50), ignored = replica.submit(prompt, 50, ignoring);
    replica.run();
    const auto expected = CacheReadingModel::answer(prompt, 50);
    EXPECT_EQ(replica.answer(plain).tokens, expected);
    const bool stop = expected.back() == 0;
    EXPECT_EQ(replica.answer(plain).finish, stop ? wire::FINISH_STOP : wire::FINISH_LENGTH);
    stopped |= stop;
    EXPECT_EQ(replica.answer(ignored).tokens, CacheReadingModel::answer(prompt, 50, true));
    EXPECT_EQ(replica.answer(ignored).finish, wire::FINISH_LENGTH);
  }
  EXPECT_TRUE(stopped);
  const std::vector<int32_t> prompt{1, 2, 3};
  const auto expected = CacheReadingModel::answer(prompt, 10, true);
  wire::SamplingParams stopping = ignoring;
  stopping.add_stop_token_ids(expected[4]);
  const uint64_t id = replica.submit(prompt, 10, stopping);
  replica.run();
  EXPECT_EQ(replica.answer(id).finish, wire::FINISH_STOP);
  EXPECT_EQ(replica.answer(id).tokens.back(), expected[4]);
}

TEST(Engine, RefusesWhatCannotBeServedWithOneClearLine) {
  EngineReplicaOptions options = small();
  options.kv_bytes = 32 << 10;
  options.engine.max_waiting = 2;
  EngineReplica replica(options);
  const auto refusal = [&](std::vector<int32_t> prompt, int max_tokens) {
    const Status status = replica.try_submit(99, std::move(prompt), max_tokens);
    EXPECT_FALSE(status.ok());
    return status.ok() ? Error{} : status.error();
  };
  EXPECT_EQ(refusal({}, 5).param, "prompt");
  EXPECT_EQ(refusal({CacheReadingModel::kVocab}, 5).param, "prompt");
  EXPECT_NE(refusal(std::vector<int32_t>(4090, 1), 10).message.find("context is 4096 tokens"),
            std::string::npos);
  const Error too_big = refusal(std::vector<int32_t>(1000, 1), 10);
  EXPECT_NE(too_big.message.find("holds at most"), std::string::npos) << too_big.message;
  replica.submit({1}, 1);
  replica.submit({1}, 1);
  EXPECT_EQ(refusal({1}, 1).code, Code::kResourceExhausted);
  EXPECT_EQ(replica.engine().state().waiting, 2u);
  replica.run();
  replica.engine().drain();
  EXPECT_EQ(refusal({1}, 1).code, Code::kUnavailable);
}

TEST(Engine, TheLongestSequenceThatFitsIsServed) {
  for (const int sink : {0, 4}) {
    EngineReplicaOptions options = small();
    options.kv_bytes = 32 << 10;
    options.spec.sink_tokens = sink;
    EngineReplica replica(options);
    const int longest = static_cast<int>(replica.engine().state().max_sequence_tokens);
    std::mt19937 random(11);
    wire::SamplingParams ignoring = EngineReplica::greedy();
    ignoring.set_ignore_eos(true);
    std::map<uint64_t, std::vector<int32_t>> prompts;
    for (int i = 0; i < 4; ++i) {  // together they fight for every page
      auto prompt = random_prompt(random, longest / 2);
      prompts[replica.submit(prompt, longest - longest / 2, ignoring)] = prompt;
    }
    replica.run();
    for (const auto& [id, prompt] : prompts) {
      EXPECT_EQ(replica.answer(id).tokens, CacheReadingModel::answer(prompt, longest - longest / 2, true));
    }
    EXPECT_FALSE(replica.try_submit(9999, random_prompt(random, 1), longest, ignoring).ok());
  }
}

TEST(Engine, ALostStepEndsEveryRequestWithAnError) {
  EngineReplica replica(small());
  std::vector<uint64_t> ids;
  for (int i = 0; i < 30; ++i) ids.push_back(replica.submit({1, 2, i}, 500));
  for (int i = 0; i < 5; ++i) replica.step();
  dynamic_cast<CacheReadingModel&>(replica.model(0)).fail_next();
  EXPECT_FALSE(replica.step());
  for (const uint64_t id : ids) {
    EXPECT_EQ(replica.answer(id).finish, wire::FINISH_ERROR);
    EXPECT_GT(replica.answer(id).report().prompt_tokens(), 0u) << "what it had read";
    EXPECT_EQ(replica.answer(id).error_code, static_cast<uint32_t>(Code::kUnavailable));
  }
  EXPECT_TRUE(replica.engine().state().broken);
  EXPECT_EQ(replica.try_submit(1000, {1}, 1).error().code, Code::kUnavailable);
  replica.check_all_returned();
}

TEST(Engine, WaitingEndsWithWorkAndWithDrain) {
  EngineReplica replica(small());
  const std::vector<std::function<void()>> wakes{[&] { replica.engine().drain(); },
                                                 [&] { replica.submit({1}, 1); }};
  for (auto wake = wakes.rbegin(); wake != wakes.rend(); ++wake) {
    const Deadline deadline = Deadline::in(std::chrono::seconds(60));
    std::thread other(*wake);
    replica.engine().wait_for_work(deadline);
    EXPECT_FALSE(deadline.passed());
    other.join();
    replica.run();
  }
}

TEST(Engine, SeedsGiveTheSameTokensInAnyCompany) {
  wire::SamplingParams sampling;
  sampling.set_temperature(0.9);
  sampling.set_top_p(0.95);
  sampling.set_seed(42);
  sampling.set_ignore_eos(true);
  const std::vector<int32_t> prompt{3, 1, 4, 1, 5};
  EngineReplica alone(small());
  const uint64_t first = alone.submit(prompt, 60, sampling);
  alone.run();
  EngineReplicaOptions options = small(2);
  options.kv_bytes = 48 << 10;
  options.engine.scheduler.step_tokens = 9;
  EngineReplica busy(options);
  std::mt19937 random(12);
  for (int i = 0; i < 10; ++i) busy.submit(random_prompt(random, 30), 60);
  const uint64_t second = busy.submit(prompt, 60, sampling);
  for (int i = 0; i < 10; ++i) busy.submit(random_prompt(random, 30), 60);
  busy.run();
  EXPECT_EQ(busy.answer(second).tokens, alone.answer(first).tokens);
  sampling.set_seed(43);
  const uint64_t third = alone.submit(prompt, 60, sampling);
  alone.run();
  EXPECT_NE(alone.answer(third).tokens, alone.answer(first).tokens);
}

TEST(Engine, LogprobsComeWithTheTokens) {
  EngineReplica replica(small(2));
  wire::SamplingParams sampling = EngineReplica::greedy();
  sampling.set_logprobs(true);
  sampling.set_top_logprobs(3);
  const uint64_t id = replica.submit({1, 2}, 4, sampling);
  replica.run();
  for (const wire::TokenEvent& event : replica.answer(id).events) {
    ASSERT_EQ(event.logprobs_size(), event.tokens_size());
    ASSERT_EQ(event.top_logprobs(0).entries_size(), 3);
    EXPECT_EQ(event.top_logprobs(0).entries(0).token(), event.tokens(0));
    EXPECT_FLOAT_EQ(event.top_logprobs(0).entries(0).logprob(), event.logprobs(0).logprob());
  }
}

}  // namespace
}  // namespace lowkey::worker
