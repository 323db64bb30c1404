// Random requests by the thousand: every answer is right, and every byte comes back.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

TEST(EngineSoak, CancellationStorm) {
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

// Shared prefixes, cancels, tiny memory and a store that forgets: every
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
