#include "worker/engine/scheduler.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "tests/unit/worker/engine/scheduler_loop.h"

namespace lowkey::worker {
namespace {

constexpr int kPageTokens = 16;

kernels::PageLayout layout() {
  kernels::PageSpec spec;
  spec.page_tokens = kPageTokens;
  return std::move(
             kernels::PageLayout::make(
                 spec, {.num_banks = 1, .num_kv_heads = 1, .head_dim = 16, .dtype = kernels::DType::kF32}))
      .value();
}

TEST(Scheduler, DecodesGetTheirTokenWhileALongPromptIsPrefilled) {
  Loop loop({.step_tokens = 32, .max_batch = 8}, layout(), {1 << 20});
  for (int i = 0; i < 4; ++i) loop.add(4, 1000);
  loop.step();
  loop.add(500, 10);
  for (int i = 0; i < 10; ++i) {
    const Schedule& plan = loop.step();
    EXPECT_EQ(plan.decode_tokens, 4);
    EXPECT_EQ(plan.prefill_tokens, 28) << "the rest of the budget";
  }
}

TEST(Scheduler, PromptTokensBesideDecodesAreBounded) {
  Loop loop({.step_tokens = 64, .max_batch = 8}, layout(), {1 << 20});
  loop.add(100, 1000);
  EXPECT_EQ(loop.step(16).prefill_tokens, 64) << "nobody waits for a token";
  EXPECT_EQ(loop.step(16).prefill_tokens, 36);
  loop.add(100, 10);
  loop.add(100, 10);
  for (int i = 0; i < 12; ++i) {
    const Schedule& plan = loop.step(16);
    EXPECT_GE(plan.decode_tokens, 1);
    EXPECT_EQ(plan.prefill_tokens, 16);
  }
}

TEST(Scheduler, NeitherStarvesAtAnyBudget) {
  for (const int budget : {1, 2, 3, 8, 16}) {
    Loop loop({.step_tokens = budget, .max_batch = 8}, layout(), {1 << 20});
    std::vector<uint64_t> ids;
    for (int i = 0; i < 6; ++i) ids.push_back(loop.add(1, 400));
    for (int i = 0; i < 40; ++i) loop.step();
    const uint64_t late = loop.add(60, 400);
    bool decoding = false;
    for (int i = 0; i < 200; ++i) {
      loop.step();
      decoding |= loop.find(late)->generated() > 0;
      for (const uint64_t id : ids) {
        ASSERT_LE(loop.steps() - loop.last_step(id), 2 * 7 + 6) << "a decode waits, budget " << budget;
      }
    }
    EXPECT_TRUE(decoding) << "the prefill waits, budget " << budget;
  }
}

TEST(Scheduler, WaitingSequencesStartInOrder) {
  Loop loop({.step_tokens = 64, .max_batch = 2}, layout(), {1 << 20});
  std::vector<uint64_t> ids;
  for (int i = 0; i < 10; ++i) ids.push_back(loop.add(10 + 20 * (i % 3), 5));
  for (int i = 0; i < 200 && !loop.ended(ids.back()); ++i) loop.step();
  EXPECT_EQ(loop.order(), ids) << "equal answers, two at a time";
}

TEST(Scheduler, AdmissionForecastsTheWholePrompt) {
  // Room for 20 pages and tails: the second prompt of 200 tokens (13 pages) must wait for the first.
  Loop loop({.step_tokens = 16, .max_batch = 8}, layout(), {22 * (layout().slab_bytes[0] + 128)});
  const uint64_t first = loop.add(200, 20), second = loop.add(200, 20);
  loop.step();
  EXPECT_EQ(loop.scheduler().running(), 1u);
  for (int i = 0; i < 100 && !loop.ended(first); ++i) {
    loop.step();
    EXPECT_EQ(loop.scheduler().preemptions(), 0u);
  }
  for (int i = 0; i < 100 && !loop.ended(second); ++i) loop.step();
  EXPECT_TRUE(loop.ended(second));
}

TEST(Scheduler, TheYoungestGivesWayAndTheOldestNeverDoes) {
  Loop loop({.step_tokens = 64, .max_batch = 8}, layout(), {12 * (layout().slab_bytes[0] + 128)});
  std::vector<uint64_t> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(loop.add(10, 120));
  int oldest = 0;
  for (int i = 0; i < 2000 && !loop.ended(ids[2]); ++i) {
    loop.step();
    if (const Sequence* first = loop.find(ids[0])) {
      EXPECT_EQ(first->state, Sequence::State::kRunning);
      EXPECT_GT(first->computed, oldest) << "the oldest goes on in every step";
      oldest = first->computed;
    }
  }
  EXPECT_TRUE(loop.ended(ids[2]));
  EXPECT_EQ(loop.order(), ids);
  EXPECT_GT(loop.scheduler().preemptions(), 0u);
}

TEST(Scheduler, RandomLoadEndsWithEverythingReturned) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const SchedulerOptions options{.step_tokens = 1 + static_cast<int>(random() % 100),
                                   .max_batch = 1 + static_cast<int>(random() % 12)};
    const int pages = 10 + random() % 40;
    Loop loop(options, layout(), {pages * (layout().slab_bytes[0] + 128)});
    const int most = static_cast<int>(loop.pool().memory().max_sequence_tokens());
    std::set<uint64_t> open;
    size_t total = 0;
    for (int i = 0; i < 200000 && (total < 60 || !open.empty()); ++i) {
      if (total < 60 && random() % 4 == 0) {
        const int prompt = 1 + random() % (most / 2);
        open.insert(loop.add(prompt, 1 + random() % (most - prompt)));
        ++total;
      }
      if (!open.empty() && random() % 50 == 0) {
        Sequence* victim = loop.find(*open.begin());
        if (victim != nullptr) loop.scheduler().remove(*victim);
      }
      loop.step();
      std::erase_if(open, [&](uint64_t id) { return loop.ended(id); });
    }
    EXPECT_TRUE(open.empty()) << "seed " << seed;
    EXPECT_EQ(loop.pool().ledger().used, 0u);
    loop.step();
    EXPECT_FALSE(loop.scheduler().has_released());
  }
}

// Two prompts that begin alike arrive together: the second starts when the first has published what they
// share, and a third one does not wait for either.
TEST(Scheduler, APageIsComputedOnce) {
  Loop loop({.step_tokens = 64, .max_batch = 8}, layout(), {1 << 20});
  const uint64_t first = loop.add(40, 5, 1), same = loop.add(50, 5, 1), other = loop.add(30, 5);
  EXPECT_EQ(loop.scheduler().queued_tokens(true), 40u + 18 + 30) << "two pages will be found";
  EXPECT_EQ(loop.step().prefill_tokens, 64);
  EXPECT_EQ(loop.find(first)->computed, 40);
  EXPECT_EQ(loop.find(same)->computed, 0);
  EXPECT_EQ(loop.find(other)->computed, 24);
  EXPECT_EQ(loop.scheduler().computed_elsewhere(), 1u);
  EXPECT_EQ(loop.scheduler().queued_tokens(true), 18u + 6);
  EXPECT_EQ(loop.scheduler().queued_tokens(false), 6u) << "of those that have started";
  EXPECT_EQ(loop.step().prefill_tokens, 6 + 18);
  EXPECT_EQ(loop.find(same)->report.device_tokens, 32);
  EXPECT_EQ(loop.scheduler().computed_elsewhere(), 1u);
}

TEST(Scheduler, NobodyWaitsForPagesThatWillNotBePublished) {
  Loop loop({.step_tokens = 64, .max_batch = 8}, layout(), {1 << 20});
  const uint64_t first = loop.add(100, 5, 1);
  loop.step();
  loop.find(first)->tainted_from = 64;  // it has read coarse pages
  const uint64_t same = loop.add(100, 5, 1);
  loop.step();
  EXPECT_EQ(loop.find(same)->computed, 64 + 28) << "four pages found, and what the step has left";
}

TEST(Scheduler, APreemptedSequenceIsWaitedForByNobody) {
  Loop loop({.step_tokens = 64, .max_batch = 8}, layout(), {1 << 20});
  const uint64_t first = loop.add(100, 5, 1), same = loop.add(100, 5, 1);
  loop.step();
  EXPECT_EQ(loop.find(same)->state, Sequence::State::kWaiting);
  loop.scheduler().remove(*loop.find(first));  // cancelled
  loop.step();
  EXPECT_EQ(loop.find(same)->computed, 100) << "four pages found, the rest computed";
  EXPECT_EQ(loop.scheduler().queued_tokens(true), 0u);
}

// Whoever waits in the queue finds at its turn what it found at its arrival, though it was used before all
// else.
TEST(Scheduler, WhatAWaitingSequenceFindsGoesLast) {
  const uint64_t page = layout().slab_bytes[0] + 128;
  Loop loop({.step_tokens = 64, .max_batch = 1}, layout(), {24 * page});
  const uint64_t old = loop.add(97, 1, 1);  // six pages
  while (!loop.ended(old)) loop.step();
  const uint64_t newer = loop.add(97, 1, 2);
  while (!loop.ended(newer)) loop.step();
  const uint64_t running = loop.add(160, 60);  // thirteen pages in the end
  loop.step();
  const uint64_t waiting = loop.add(97, 5, 1);
  EXPECT_EQ(loop.find(waiting)->expected, 96);
  while (!loop.ended(running)) loop.step();
  EXPECT_GT(loop.pool().evictions(), 0u);
  loop.step();
  EXPECT_EQ(loop.find(waiting)->report.device_tokens, 96);
}

}  // namespace
}  // namespace lowkey::worker
