// A stream that began on another replica goes on here from the tokens its client has.
#include <gtest/gtest.h>

#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

using Tokens = std::vector<int32_t>;

TEST(Continuation, GivesTheTokensOfTheUndisturbedRun) {
  wire::SamplingParams greedy = EngineReplica::greedy(), seeded = greedy;
  greedy.set_max_tokens(60);
  greedy.set_ignore_eos(true);
  seeded.set_max_tokens(60);
  seeded.set_ignore_eos(true);
  seeded.set_temperature(0.9);
  seeded.set_seed(42);
  wire::SamplingParams penalized = seeded;
  penalized.set_presence_penalty(0.8);
  penalized.set_frequency_penalty(0.4);
  penalized.set_repetition_penalty(1.3);
  penalized.set_min_p(0.02);
  Tokens prompt;
  for (int i = 0; i < 50; ++i) prompt.push_back(i * 7 % 90);
  for (const wire::SamplingParams& sampling : {greedy, seeded, penalized}) {
    for (const int ranks : {1, 2}) {
      EngineReplica whole(reading_replica(ranks));
      ASSERT_TRUE(whole.try_submit(submit_of(1, prompt, sampling)).ok());
      whole.run();
      const Tokens expected = whole.answer(1).tokens;
      ASSERT_EQ(expected.size(), 60u);
      for (const size_t emitted : {1, 15, 30, 59}) {
        EngineReplica replica(reading_replica(ranks));
        const Tokens begun(expected.begin(), expected.begin() + emitted);
        ASSERT_TRUE(replica.try_submit(submit_of(2, prompt, sampling, begun)).ok());
        replica.run();
        const Answer& answer = replica.answer(2);
        EXPECT_EQ(answer.tokens, Tokens(expected.begin() + emitted, expected.end())) << emitted;
        EXPECT_EQ(answer.finish, wire::FINISH_LENGTH);
        EXPECT_EQ(answer.report().prompt_tokens(), 50u);
        EXPECT_EQ(answer.report().recomputed_tokens(), 50 + emitted);
        EXPECT_EQ(replica.metric(0, "lowkey_recomputed_tokens_total", "retry"), 50 + emitted);
      }
    }
  }
}

TEST(Continuation, RefusesWhatCannotGoOn) {
  EngineReplica replica(reading_replica());
  wire::SamplingParams sampling = EngineReplica::greedy();
  sampling.set_max_tokens(3);
  EXPECT_EQ(replica.try_submit(submit_of(1, {1}, sampling, {1, 2, 3})).error().param, "emitted");
  EXPECT_EQ(replica.try_submit(submit_of(1, {1}, sampling, {CacheReadingModel::kVocab})).error().param,
            "emitted");
  EXPECT_EQ(replica.open_requests(), 0u);
}

}  // namespace
}  // namespace lowkey::worker
