#include "worker/engine/engine.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/unit/worker/engine/cache_reading_model.h"
#include "tests/unit/worker/engine/engine_replica.h"

namespace lowkey::worker {
namespace {

EngineReplicaOptions small(int ranks = 1) {
  EngineReplicaOptions options;
  options.ranks = ranks;
  options.kv_bytes = 1 << 20;
  options.spec.page_tokens = 16;
  options.engine.scheduler.step_tokens = 64;
  options.engine.scheduler.max_batch = 16;
  options.engine.max_waiting = 100000;
  options.model = [](int rank, int n) { return std::make_unique<CacheReadingModel>(rank, n); };
  return options;
}

std::vector<int32_t> random_prompt(std::mt19937& random, int length,
                                   int distinct = CacheReadingModel::kVocab) {
  std::vector<int32_t> prompt(length);
  for (int32_t& token : prompt) token = random() % distinct;
  return prompt;
}

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

bool wait_for(const std::function<bool()>& condition) {
  const Deadline deadline = Deadline::in(std::chrono::seconds(20));
  while (!condition() && !deadline.passed()) std::this_thread::yield();
  return condition();
}

// Other prompts push the first one's pages off the device.
void push_out(EngineReplica& replica, std::mt19937& random) {
  for (int i = 0; i < 30; ++i) replica.submit(random_prompt(random, 200), 2);
  replica.run();
}

TEST(Engine, ADroppedPrefixComesBackFromTheStore) {
  for (const int sink : {0, 4}) {
    EngineReplicaOptions options = small(2);
    options.spec.sink_tokens = sink;
    options.kv_bytes = 128 << 10;
    options.store = std::make_shared<MemoryStore>();
    EngineReplica replica(options);
    std::mt19937 random(6);
    const auto prompt = random_prompt(random, 300);
    const auto first = replica.complete(prompt, 20);
    EXPECT_EQ(first, CacheReadingModel::answer(prompt, 20));
    push_out(replica, random);
    const uint64_t again = replica.submit(prompt, 20);
    replica.run();
    EXPECT_EQ(replica.answer(again).tokens, first);
    EXPECT_EQ(replica.answer(again).cached, 288u);
    EXPECT_GT(replica.answer(again).cached_store, 200u);
  }
}

TEST(Engine, DamagedOrMissingPagesAreRecomputed) {
  EngineReplicaOptions options = small(2);
  options.kv_bytes = 128 << 10;
  options.store = std::make_shared<MemoryStore>();
  EngineReplica replica(options);
  std::mt19937 random(7);
  const auto prompt = random_prompt(random, 300);
  const auto expected = CacheReadingModel::answer(prompt, 20);
  const std::vector<std::function<void()>> harms{[&] { options.store->damage_all(); },
                                                 [&] { options.store->forget_rank(1); },
                                                 [&] { options.store->forget_all(); }};
  for (const auto& harm : harms) {
    EXPECT_EQ(replica.complete(prompt, 20), expected);
    push_out(replica, random);
    harm();
    const uint64_t again = replica.submit(prompt, 20);
    replica.run();
    EXPECT_EQ(replica.answer(again).tokens, expected);
    EXPECT_EQ(replica.answer(again).cached_store, 0u);
    push_out(replica, random);
    const uint64_t third = replica.submit(prompt, 20);
    replica.run();
    EXPECT_GT(replica.answer(third).cached_store, 0u) << "after a miss the page is written again";
    EXPECT_EQ(replica.answer(third).tokens, expected);
    push_out(replica, random);
  }
}

TEST(Engine, WaitingForTheStoreHoldsUpNobodyElseAndEnds) {
  EngineReplicaOptions options = small(2);
  options.kv_bytes = 256 << 10;
  options.store = std::make_shared<MemoryStore>();
  options.engine.restore_wait = std::chrono::milliseconds(50);
  std::mutex mutex;
  std::vector<std::function<void()>> held;
  bool hold = false;
  options.hold_restore = [&](int, bool, std::function<void()> serve) {
    std::lock_guard lock(mutex);
    if (hold) held.push_back(std::move(serve));
    return hold;
  };
  EngineReplica replica(options);
  std::mt19937 random(8);
  const auto prompt = random_prompt(random, 300);
  replica.complete(prompt, 5);
  for (int i = 0; i < 3; ++i) push_out(replica, random);
  {
    std::lock_guard lock(mutex);
    hold = true;
  }
  const uint64_t restoring = replica.submit(prompt, 5);
  const uint64_t other = replica.submit({1, 2, 3}, 5);  // has no page to restore
  replica.run_until(other);
  EXPECT_EQ(replica.answer(other).tokens, CacheReadingModel::answer({1, 2, 3}, 5));
  replica.run_until(restoring);  // gives up after the wait, and computes
  EXPECT_EQ(replica.answer(restoring).tokens, CacheReadingModel::answer(prompt, 5));
  EXPECT_EQ(replica.answer(restoring).cached_store, 0u);
  const auto asked = [&] {
    std::lock_guard lock(mutex);
    return held.size();
  };
  ASSERT_TRUE(wait_for([&] { return asked() == 2; })) << "one restore on each of two ranks";
  for (int i = 0; i < 20; ++i) replica.run_until(replica.submit(random_prompt(random, 60), 2));
  EXPECT_EQ(asked(), 2u) << "a store that owes an answer is not waited for again";
  while (replica.step()) {
  }
  EXPECT_GT(replica.engine().state().kv_bytes_used, 0u) << "late transfers still own their pages";
  {
    std::lock_guard lock(mutex);
    hold = false;
  }
  for (auto& serve : held) serve();
  while (replica.step()) {
  }
  replica.check_all_returned();
}

TEST(Engine, CancellationStorm) {
  EngineReplicaOptions options = small(2);
  options.kv_bytes = 96 << 10;
  options.store = std::make_shared<MemoryStore>();
  EngineReplica replica(options);
  std::mt19937 random(9);
  std::map<uint64_t, std::vector<int32_t>> prompts;
  std::vector<uint64_t> cancelled;
  for (int i = 0; i < 400; ++i) {
    auto prompt = random_prompt(random, 1 + random() % 100, 3);
    const uint64_t id = replica.submit(prompt, 1 + random() % 60);
    prompts[id] = std::move(prompt);
    if (random() % 2 == 0) {
      const uint64_t victim = 1 + random() % id;
      replica.engine().cancel(victim);
      cancelled.push_back(victim);
    }
    if (random() % 3 == 0) replica.step();
  }
  replica.run();
  int ended_cancelled = 0;
  for (const auto& [id, prompt] : prompts) {
    const Answer& answer = replica.answer(id);
    ASSERT_NE(answer.finish, wire::FINISH_NONE);
    const auto expected = CacheReadingModel::answer(prompt, 60);
    ASSERT_LE(answer.tokens.size(), expected.size());
    EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), expected.begin())) << id;
    ended_cancelled += answer.finish == wire::FINISH_CANCELLED;
  }
  EXPECT_GT(ended_cancelled, 50);
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
    const TimePoint start = Clock::now();
    std::thread other(*wake);
    replica.engine().wait_for_work(Deadline::in(std::chrono::seconds(60)));
    EXPECT_LT(seconds(Clock::now() - start), 30);
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

// Thousands of random requests with shared prefixes, cancels, tiny memory and a store that forgets: every
// answer is right and every byte comes back.
TEST(EngineSoak, EveryPageReturns) {
  for (const int ranks : {1, 2}) {
    EngineReplicaOptions options = small(ranks);
    options.kv_bytes = 160 << 10;
    options.spec.sink_tokens = ranks == 2 ? 4 : 0;
    options.store = std::make_shared<MemoryStore>();
    options.engine.executor.staging_bytes = 64 << 10;
    EngineReplica replica(options);
    std::mt19937 random(100 + ranks);
    std::vector<std::vector<int32_t>> stems;
    for (int i = 0; i < 12; ++i) stems.push_back(random_prompt(random, 20 + random() % 150));
    std::map<uint64_t, std::pair<std::vector<int32_t>, int>> requests;
    std::set<uint64_t> cancelled;
    for (int i = 0; i < 1500; ++i) {
      auto prompt = stems[random() % stems.size()];
      prompt.resize(1 + random() % prompt.size());
      const auto rest = random_prompt(random, random() % 40);
      prompt.insert(prompt.end(), rest.begin(), rest.end());
      const int max_tokens = 1 + random() % 50;
      const uint64_t id = replica.submit(prompt, max_tokens);
      requests[id] = {std::move(prompt), max_tokens};
      if (random() % 8 == 0) {
        const uint64_t victim = id - random() % std::min<uint64_t>(id, 30);
        replica.engine().cancel(victim);
        cancelled.insert(victim);
      }
      if (random() % 200 == 0) options.store->forget_all();
      while (replica.open_requests() > 24) {
        if (!replica.step()) replica.engine().wait_for_work(Deadline::in(std::chrono::seconds(5)));
      }
    }
    replica.run();
    for (const auto& [id, request] : requests) {
      const Answer& answer = replica.answer(id);
      const auto expected = CacheReadingModel::answer(request.first, request.second);
      if (cancelled.contains(id)) {
        ASSERT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), expected.begin())) << id;
      } else {
        ASSERT_EQ(answer.tokens, expected) << id << " on " << ranks;
      }
    }
  }
}

// Requests and cancels from other threads while the step thread runs.
TEST(EngineSoak, ManyThreads) {
  EngineReplica replica(small(2));
  std::atomic<int> refused = 0;
  std::vector<std::thread> clients;
  std::atomic<int> submitting = 3;
  for (int client = 0; client < 3; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(client);
      for (int i = 0; i < 100; ++i) {
        wire::Submit request;
        request.set_request_id(1'000'000 * (client + 1) + i);
        for (int t = random() % 50; t >= 0; --t) request.add_prompt(random() % 50);
        *request.mutable_sampling() = EngineReplica::greedy();
        request.mutable_sampling()->set_max_tokens(1 + random() % 20);
        if (!replica.engine().submit(request).ok()) ++refused;
        if (random() % 4 == 0) replica.engine().cancel(request.request_id());
        EXPECT_LE(replica.engine().state().kv_bytes_used, replica.engine().state().kv_bytes_capacity);
      }
      --submitting;
    });
  }
  const Deadline deadline = Deadline::in(std::chrono::seconds(100));
  const auto busy = [&] {
    const EngineState state = replica.engine().state();
    return submitting > 0 || state.running + state.waiting > 0;
  };
  while (busy() && !deadline.passed()) {
    if (!replica.step()) replica.engine().wait_for_work(Deadline::in(std::chrono::milliseconds(20)));
  }
  for (std::thread& client : clients) client.join();
  while (replica.step()) {
  }
  EXPECT_EQ(refused, 0);
  replica.check_all_returned();
}

}  // namespace
}  // namespace lowkey::worker
