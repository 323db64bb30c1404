// Prefixes that come back level by level: what is read meanwhile, what is never published, and what becomes
// of it when levels are late, lost or damaged. The model answers from what it reads in the cache, and marks
// what it computed while a page was coarse.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

using Tokens = std::vector<int32_t>;

constexpr int kLevels = 3, kPageTokens = 16;
constexpr size_t kPrompt = 300, kPrefix = 288;  // 18 whole pages of it

Tokens random_tokens(unsigned seed, size_t length) {
  std::mt19937 random(seed);
  Tokens tokens(length);
  for (int32_t& token : tokens) token = 1 + random() % (CacheReadingModel::kVocab - 1);
  return tokens;
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class ProgressiveRestore : public ::testing::TestWithParam<int> {
 protected:
  EngineReplicaOptions options() {
    EngineReplicaOptions options = small(GetParam());
    options.spec = kernels::PageSpec::embedded("three levels", 8, 4);
    options.spec.page_tokens = kPageTokens;
    options.spec.num_levels = kLevels;
    options.spec.key.bits.assign(1, {2, 2, 4});
    options.spec.value.bits = options.spec.key.bits;
    options.store = store_;
    options.hold_restore = [this](int, bool upper, std::function<void()> serve) {
      std::lock_guard lock(mutex_);
      const bool hold = upper ? hold_upper_ : hold_first_;
      if (hold) held_.push_back(std::move(serve));
      return hold;
    };
    return options;
  }
  // Another process has computed this, and stored its pages.
  void store(const Tokens& prompt) {
    EngineReplica replica(options());
    replica.complete(prompt, 1);
  }
  void hold(bool first, bool upper) {
    std::lock_guard lock(mutex_);
    hold_first_ = first;
    hold_upper_ = upper;
  }
  void let_go() {
    std::vector<std::function<void()>> held;
    {
      std::lock_guard lock(mutex_);
      hold_first_ = hold_upper_ = false;
      held.swap(held_);
    }
    for (const auto& serve : held) serve();
  }
  size_t held() {
    std::lock_guard lock(mutex_);
    return held_.size();
  }
  static uint64_t submit(EngineReplica& replica, const Tokens& prompt, int max_tokens, int min_levels = 0) {
    static uint64_t next = 1000;
    wire::SamplingParams sampling = EngineReplica::greedy();
    sampling.set_max_tokens(max_tokens);
    sampling.set_ignore_eos(true);
    wire::Submit request = submit_of(++next, prompt, sampling);
    request.set_min_levels(min_levels);
    EXPECT_TRUE(replica.try_submit(request).ok());
    return next;
  }
  static uint64_t ask(EngineReplica& replica, const Tokens& prompt, int max_tokens, int min_levels = 0) {
    const uint64_t id = submit(replica, prompt, max_tokens, min_levels);
    replica.run();
    return id;
  }
  static Tokens undisturbed(const Tokens& prompt, int max_tokens) {
    return CacheReadingModel::answer(prompt, max_tokens, true);
  }
  // The restored prefix at `levels` levels for good; all that follows computed on it.
  static Tokens coarse(const Tokens& prompt, int max_tokens, int levels, size_t prefix = kPrefix) {
    return CacheReadingModel::answer_reading(prompt, max_tokens, true, [&](size_t at, int32_t token) {
      if (at < 4) return token;  // the sink
      if (at >= prefix) return token ^ CacheReadingModel::kTaint;
      return CacheReadingModel::coarse(token, levels, kLevels);
    });
  }
  static void step_until(EngineReplica& replica, const std::function<bool()>& condition) {
    const Deadline deadline = Deadline::in(std::chrono::seconds(50));
    while (!condition() && !deadline.passed()) {
      if (!replica.step()) replica.engine().wait_for_work(Deadline::in(std::chrono::milliseconds(20)));
    }
    ASSERT_TRUE(condition()) << "never came true";
  }
  static void settle(EngineReplica& replica) {
    step_until(replica, [&] { return replica.engine().state().kv_bytes_used == 0; });
    replica.check_all_returned();
  }
  void soak(double bytes_per_second);
  bool all_held() { return held() >= static_cast<size_t>(GetParam()); }

  std::shared_ptr<MemoryStore> store_ = std::make_shared<MemoryStore>();
  const Tokens prompt_ = random_tokens(1, kPrompt);

 private:
  std::mutex mutex_;
  std::vector<std::function<void()>> held_;
  bool hold_first_ = false, hold_upper_ = false;
};

TEST_P(ProgressiveRestore, StartsAtTheFirstLevelWhileTheOthersNeverCome) {
  store(prompt_);
  EngineReplica replica(options());
  hold(false, true);
  const uint64_t id = submit(replica, prompt_, 40);
  replica.run_until(id);
  const Answer& answer = replica.answer(id);
  EXPECT_EQ(answer.tokens, coarse(prompt_, 40, 1));
  EXPECT_NE(answer.tokens, undisturbed(prompt_, 40));
  const wire::KvReport& report = answer.report();
  EXPECT_EQ(report.decision(), "progressive");
  EXPECT_EQ(report.host_tokens(), kPrefix);
  EXPECT_EQ(report.computed_tokens(), kPrompt - kPrefix);
  EXPECT_EQ(report.levels(), 3u);
  EXPECT_EQ(report.lowest_levels_read(), 1u);
  EXPECT_EQ(report.coarse_tokens(), 40u);
  EXPECT_EQ(answer.cached_store, kPrefix);
  EXPECT_EQ(answer.events.front().kv().host_tokens(), kPrefix) << "the first event has the report, too";
  EXPECT_GT(replica.metric(0, "lowkey_pages_read_total", "levels=\"1\""), 0);
  EXPECT_GT(replica.metric(0, "lowkey_coarse_tokens_total"), 40);
  EXPECT_EQ(replica.metric(0, "lowkey_prefix_decisions_total", "progressive"), 1);
  // The same as where the store has no more than that level.
  EngineReplica forced(options());
  let_go();
  settle(replica);
  store_->forget_levels(1);
  const uint64_t same = submit(forced, prompt_, 40);
  forced.run();
  EXPECT_EQ(forced.answer(same).tokens, answer.tokens);
  EXPECT_FALSE(forced.answer(same).report().notes().empty()) << "says why it stayed coarse";
}

TEST_P(ProgressiveRestore, LaterLevelsEnterBetweenStepsAndNothingCoarseIsPublished) {
  store(prompt_);
  EngineReplica replica(options());
  hold(false, true);
  const uint64_t id = submit(replica, prompt_, 100);
  step_until(replica, [&] { return replica.answer(id).tokens.size() >= 10 && all_held(); });
  const size_t stored = store_->pages();
  let_go();
  replica.run();
  const Answer& answer = replica.answer(id);
  const Tokens at_first = coarse(prompt_, 10, 1);
  EXPECT_TRUE(std::equal(at_first.begin(), at_first.end(), answer.tokens.begin()));
  EXPECT_LT(answer.report().coarse_tokens(), 20u) << "the other levels came between steps";
  EXPECT_GE(answer.report().coarse_tokens(), 10u);
  EXPECT_GT(replica.metric(0, "lowkey_pages_read_total", "levels=\"3\""), 0);
  EXPECT_EQ(store_->pages(), stored) << "pages computed on a coarse prefix are not spilled";
  // What was computed on the coarse prefix is nobody else's: the conversation goes on as if undisturbed.
  const Tokens next = joined(prompt_, answer.tokens);
  const uint64_t turn = submit(replica, next, 30);
  const uint64_t again = submit(replica, prompt_, 100);
  replica.run();
  EXPECT_EQ(replica.answer(turn).cached, kPrefix);
  EXPECT_EQ(replica.answer(turn).tokens, undisturbed(next, 30));
  EXPECT_EQ(replica.answer(again).tokens, undisturbed(prompt_, 100));
  EXPECT_EQ(replica.answer(again).report().lowest_levels_read(), 3u);
  EXPECT_EQ(replica.answer(again).report().coarse_tokens(), 0u);
}

TEST_P(ProgressiveRestore, CoarsePagesAreSharedAndGetFinerForAll) {
  store(prompt_);
  EngineReplica replica(options());
  hold(false, true);
  const uint64_t first = submit(replica, prompt_, 200);
  const uint64_t second = submit(replica, joined(prompt_, {5, 6, 7}), 200);
  step_until(replica, [&] {
    return !replica.answer(first).tokens.empty() && !replica.answer(second).tokens.empty() && all_held();
  });
  EXPECT_EQ(replica.answer(second).cached_store, 0u) << "found on the device";
  EXPECT_EQ(replica.answer(second).cached, kPrefix);
  let_go();
  replica.run();
  EXPECT_LT(replica.answer(first).report().coarse_tokens(), 100u);
  EXPECT_LT(replica.answer(second).report().coarse_tokens(), 100u);
  EXPECT_EQ(replica.answer(second).report().lowest_levels_read(), 1u);
}

TEST_P(ProgressiveRestore, EverythingAtOnceWhereTheRestTakesLessThanAStep) {
  const Tokens other = random_tokens(2, kPrompt);
  store(prompt_);
  store(other);
  EngineReplica replica(options());
  store_->set_bytes_per_second(1e15);
  submit(replica, prompt_, 3);
  replica.run();  // has measured
  const uint64_t id = submit(replica, other, 30);
  replica.run();
  EXPECT_EQ(replica.answer(id).tokens, undisturbed(other, 30));
  EXPECT_EQ(replica.answer(id).report().decision(), "restore");
  EXPECT_EQ(replica.answer(id).report().lowest_levels_read(), 3u);
  EXPECT_GT(replica.answer(id).report().predicted_compute_seconds(), 0);
  EXPECT_GT(replica.engine().state().rates.restore_bytes_per_second, 1e14);
}

TEST_P(ProgressiveRestore, ComputesWhereTheStoreIsSlower) {
  const Tokens other = random_tokens(2, kPrompt);
  store(prompt_);
  store(other);
  EngineReplica replica(options());
  store_->set_bytes_per_second(1);
  submit(replica, prompt_, 3);
  replica.run();
  const uint64_t id = submit(replica, other, 30);
  replica.run();
  EXPECT_EQ(replica.answer(id).tokens, undisturbed(other, 30));
  EXPECT_EQ(replica.answer(id).report().decision(), "recompute");
  EXPECT_EQ(replica.answer(id).cached, 0u);
  EXPECT_FALSE(replica.answer(id).report().notes().empty());
  EXPECT_EQ(replica.metric(0, "lowkey_prefix_decisions_total", "recompute"), 1);
}

// All levels were asked for at once, and some are gone: the first ones do.
TEST_P(ProgressiveRestore, WhatIsNotWholeInTheStoreComesAsFarAsItIs) {
  const Tokens other = random_tokens(2, kPrompt);
  store(prompt_);
  store(other);
  EngineReplica replica(options());
  store_->set_bytes_per_second(1e15);
  submit(replica, prompt_, 3);
  replica.run();
  store_->forget_levels(2);
  const uint64_t id = submit(replica, other, 30);
  replica.run();
  EXPECT_EQ(replica.answer(id).cached_store, kPrefix);
  EXPECT_GE(replica.answer(id).report().coarse_tokens(), 30u);
}

TEST_P(ProgressiveRestore, ADamagedUpperLevelStaysAway) {
  store(prompt_);
  store_->damage_all(1);
  EngineReplica replica(options());
  const uint64_t id = ask(replica, prompt_, 40);
  EXPECT_EQ(replica.answer(id).tokens, coarse(prompt_, 40, 1));
  EXPECT_FALSE(replica.answer(id).report().notes().empty());
  // Who needs all levels computes them; the better pages take the place of the coarse ones.
  const uint64_t full = ask(replica, prompt_, 40, 3);
  EXPECT_EQ(replica.answer(full).tokens, undisturbed(prompt_, 40));
  EXPECT_EQ(replica.answer(full).cached, 0u);
  const uint64_t again = ask(replica, prompt_, 40);
  EXPECT_EQ(replica.answer(again).tokens, undisturbed(prompt_, 40));
  EXPECT_EQ(replica.answer(again).cached, kPrefix);
  EXPECT_EQ(replica.answer(again).report().coarse_tokens(), 0u);
}

TEST_P(ProgressiveRestore, ADamagedFirstLevelIsComputed) {
  store(prompt_);
  store_->damage_all(0);
  EngineReplica replica(options());
  const uint64_t id = ask(replica, prompt_, 40);
  EXPECT_EQ(replica.answer(id).tokens, undisturbed(prompt_, 40));
  EXPECT_EQ(replica.answer(id).cached, 0u);
}

TEST_P(ProgressiveRestore, ARequestGetsTheLevelsThatItDemands) {
  store(prompt_);
  for (const int levels : {2, 3}) {
    EngineReplica replica(options());
    hold(false, true);
    const uint64_t id = submit(replica, prompt_, 40, levels);
    replica.run_until(id);
    EXPECT_EQ(replica.answer(id).tokens,
              levels == 3 ? undisturbed(prompt_, 40) : coarse(prompt_, 40, levels));
    EXPECT_EQ(replica.answer(id).report().lowest_levels_read(), levels);
    let_go();
    settle(replica);
  }
  EngineReplicaOptions server = options();
  server.engine.min_levels = 3;
  EngineReplica strict(server);
  hold(false, true);
  const uint64_t id = submit(strict, prompt_, 40, 1);
  strict.run_until(id);
  EXPECT_EQ(strict.answer(id).tokens, undisturbed(prompt_, 40)) << "the server's demand holds for all";
}

// Coarse pages on the device are brought to what the next request demands.
TEST_P(ProgressiveRestore, DeviceHitsBelowTheDemandAreRaised) {
  store(prompt_);
  EngineReplica replica(options());
  hold(false, true);
  const uint64_t first = submit(replica, prompt_, 2);
  replica.run_until(first);
  const uint64_t second = submit(replica, prompt_, 40, 3);
  step_until(replica, [&] { return all_held(); });
  let_go();
  replica.run();
  EXPECT_EQ(replica.answer(second).tokens, undisturbed(prompt_, 40));
  EXPECT_EQ(replica.answer(second).cached, kPrefix);
}

TEST_P(ProgressiveRestore, CancelledInTheMiddleReturnsEveryPage) {
  store(prompt_);
  for (const bool first : {true, false}) {
    EngineReplica replica(options());
    hold(first, true);
    const uint64_t id = submit(replica, prompt_, 1000);
    step_until(replica, [&] { return all_held(); });
    replica.engine().cancel(id);
    replica.run_until(id);
    EXPECT_EQ(replica.answer(id).finish, wire::FINISH_CANCELLED);
    EXPECT_TRUE(replica.answer(id).events.back().has_kv());
    EXPECT_GT(replica.engine().state().kv_bytes_used, 0u) << "transfers still own their pages";
    let_go();
    settle(replica);
  }
}

// What a lossy format gives back counts as coarse at all levels, and can be refused.
TEST_P(ProgressiveRestore, LossyPagesTaintLikeCoarseOnes) {
  store(prompt_);
  store_->set_lossy(true);
  EngineReplica replica(options());
  const uint64_t id = submit(replica, prompt_, 100);
  replica.run();
  EXPECT_EQ(replica.answer(id).cached_store, kPrefix);
  EXPECT_EQ(replica.answer(id).report().coarse_tokens(), 100u);
  const uint64_t turn = submit(replica, joined(prompt_, replica.answer(id).tokens), 10);
  replica.run();
  EXPECT_EQ(replica.answer(turn).cached, kPrefix) << "nothing behind it was published";
  const uint64_t exact = submit(replica, prompt_, 100, kLevels + 1);
  replica.run();
  EXPECT_EQ(replica.answer(exact).cached, 0u);
  EXPECT_EQ(replica.answer(exact).tokens, undisturbed(prompt_, 100));
  EXPECT_EQ(replica.answer(exact).report().coarse_tokens(), 0u);
}

// Who demands all levels gets the tokens of the undisturbed run, whatever others read meanwhile and whatever
// the store has lost: nothing that was computed on a coarse page is ever found. And all memory comes back.
TEST_P(ProgressiveRestore, NobodyFindsWhatWasComputedOnCoarsePages) {
  soak(0);     // nothing is measured: always progressive
  soak(1e15);  // always everything at once, and what is left of it
}

void ProgressiveRestore::soak(double bytes_per_second) {
  EngineReplicaOptions o = options();
  o.kv_bytes = 48 << 10;
  o.engine.executor.staging_bytes = 64 << 10;
  std::mt19937 random(GetParam());
  o.hold_restore = {};
  EngineReplica replica(o);
  store_->set_bytes_per_second(bytes_per_second);
  std::vector<Tokens> stems;
  for (unsigned i = 0; i < 8; ++i) stems.push_back(random_tokens(i, 60 + random() % 150));
  std::map<uint64_t, std::pair<Tokens, int>> demanding;
  std::set<uint64_t> cancelled;
  for (int i = 0; i < 400; ++i) {
    Tokens prompt = stems[random() % stems.size()];
    prompt.resize(prompt.size() - random() % 20);
    if (random() % 2 == 0) prompt = joined(prompt, random_tokens(random(), random() % 40));
    const int max_tokens = 1 + random() % 40, levels = 1 + random() % kLevels;
    const uint64_t id = submit(replica, prompt, max_tokens, levels);
    if (levels == kLevels) demanding[id] = {prompt, max_tokens};
    if (random() % 10 == 0) {
      replica.engine().cancel(id);
      cancelled.insert(id);
    }
    if (random() % 60 == 0) store_->forget_levels(1 + random() % 2);
    if (random() % 60 == 0) store_->damage_all(random() % kLevels);
    if (random() % 60 == 0) store_->forget_all();
    while (replica.open_requests() > 12) {
      if (!replica.step()) replica.engine().wait_for_work(Deadline::in(std::chrono::seconds(5)));
    }
    // The next turn of a conversation: its prefix is what was just answered.
    if (levels < kLevels && replica.answer(id).finish == wire::FINISH_LENGTH)
      stems[random() % stems.size()] = joined(prompt, replica.answer(id).tokens);
  }
  replica.run();
  ASSERT_GT(demanding.size(), 80u);
  for (const auto& [id, request] : demanding) {
    if (cancelled.contains(id)) continue;
    ASSERT_EQ(replica.answer(id).tokens, undisturbed(request.first, request.second)) << id;
    EXPECT_EQ(replica.answer(id).report().lowest_levels_read(), kLevels);
  }
  EXPECT_GT(replica.metric(0, "lowkey_coarse_tokens_total"), 0);
  EXPECT_GT(replica.metric(0, "lowkey_prompt_tokens_total", "host"), 0);
}

INSTANTIATE_TEST_SUITE_P(Tp, ProgressiveRestore, ::testing::Values(1, 2),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace lowkey::worker
