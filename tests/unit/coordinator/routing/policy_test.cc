#include "coordinator/routing/policy.h"

#include <gtest/gtest.h>

#include "coordinator/routing/prediction.h"

namespace lowkey::coordinator {
namespace {

Replica replica(int id = 0) {
  Replica replica{.id = id};
  replica.cache.page_tokens = 32;
  replica.rates = {.prefill_tokens_per_second = 1000,
                   .decode_step_seconds = 0.05,
                   .restore_bytes_per_second = 1e6,
                   .restore_latency_seconds = 0.01,
                   .page_bytes = 1000,
                   .first_level_bytes = 250};
  return replica;
}

TEST(Prediction, ComputesWhatNobodyHas) {
  const auto cold = predict(replica(), {.tokens = 2000}, 1);
  EXPECT_DOUBLE_EQ(cold.first_token(), 2.0);
  EXPECT_EQ(cold.compute_tokens, 2000u);
  const auto warm = predict(replica(), {.tokens = 2000, .prefix = {.device = 50}}, 1);
  EXPECT_DOUBLE_EQ(warm.first_token(), 0.4);
  EXPECT_DOUBLE_EQ(predict(Replica{}, {.tokens = 2000}, 500).first_token(), 4.0) << "nothing measured";
}

TEST(Prediction, EqualReplicasAreEquallyFast) {
  Replica slower = replica(), much_slower = replica();
  slower.rates.prefill_tokens_per_second = 600;
  much_slower.rates.prefill_tokens_per_second = 300;
  EXPECT_DOUBLE_EQ(predict(slower, {.tokens = 1600}, 800).first_token(), 2);
  EXPECT_DOUBLE_EQ(predict(much_slower, {.tokens = 600}, 800).first_token(), 2);
}

TEST(Prediction, RestoresOrComputesWhicheverIsQuicker) {
  // 50 pages: 1600 tokens, 1.6 s; 12.5 KB of first levels, 50 KB of all.
  const auto start = predict(replica(), {.tokens = 2000, .prefix = {.store = 50}}, 1);
  EXPECT_TRUE(start.restores);
  EXPECT_DOUBLE_EQ(start.restore, 0.0225);
  EXPECT_DOUBLE_EQ(start.first_token(), 0.4225);
  const auto all =
      predict(replica(), {.tokens = 2000, .prefix = {.store = 50}, .first_level_only = false}, 1);
  EXPECT_DOUBLE_EQ(all.restore, 0.06);
  Replica slow = replica();
  slow.rates.restore_bytes_per_second = 5000;
  const auto computed = predict(slow, {.tokens = 2000, .prefix = {.store = 50}}, 1);
  EXPECT_FALSE(computed.restores);
  EXPECT_DOUBLE_EQ(computed.first_token(), 2.0);
  slow.rates.restore_bytes_per_second = 0;  // not measured: worth a try
  EXPECT_TRUE(predict(slow, {.tokens = 2000, .prefix = {.store = 50}}, 1).restores);
}

TEST(Prediction, WaitsForWhatIsQueued) {
  Replica busy = replica();
  busy.queued_prompt_tokens = 3000;
  EXPECT_DOUBLE_EQ(predict(busy, {.tokens = 1000, .queued_tokens = 500}, 1).first_token(), 4.5);
  busy.running = 4;  // and every step of 500 tokens decodes for them, too
  EXPECT_DOUBLE_EQ(predict(busy, {.tokens = 1000, .queued_tokens = 500, .step_tokens = 500}, 1).first_token(),
                   4.5 + 9 * 0.05);
}

Candidate candidate(int replica, double queue, double compute, uint32_t in_flight = 0, uint32_t pages = 0) {
  return {.replica = replica,
          .prefix = {.device = pages},
          .queue = queue,
          .compute = compute,
          .compute_tokens = static_cast<uint64_t>(1000 * compute),
          .in_flight = in_flight};
}
// "replica reason"
std::string choose(const char* policy, const std::vector<Candidate>& candidates, int last = -1) {
  const Choice choice = make_policy(policy)->choose(candidates, last);
  return std::to_string(candidates[choice.candidate].replica) + " " + choice.reason;
}

TEST(Policy, KvTakesTheQuickestForAll) {
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1)}), "0 only");
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1, 0), candidate(1, 0.5, 0.1, 9, 40)}), "1 prefix");
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1), candidate(1, 1.5, 0.1, 0, 40)}), "1 prefix")
      << "quicker here, but 0.9 s of computing would come on top for all others";
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1), candidate(1, 11, 0.1, 0, 40)}), "0 load")
      << "its queue outweighs it";
  EXPECT_EQ(choose("kv", {candidate(0, 0.5, 1), candidate(1, 0, 1)}), "1 load");
}

TEST(Policy, KvSpreadsWhatIsNearlyEqual) {
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1, 4), candidate(1, 0, 1.05, 3)}), "1 load")
      << "a page of a preamble";
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1, 4), candidate(1, 0, 1.2, 3)}), "0 load") << "it computes faster";
  EXPECT_EQ(choose("kv", {candidate(0, 0.8, 1, 4, 20), candidate(1, 0, 1.3, 3)}), "0 prefix")
      << "nearly as quick, with less to compute";
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1), candidate(1, 0, 0.95, 0, 2)}, 1), "1 prefix");
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1), candidate(1, 0, 1), candidate(2, 0, 1)}, 0), "1 turn");
  EXPECT_EQ(choose("kv", {candidate(0, 0, 1), candidate(1, 0, 1), candidate(2, 0, 1)}, 2), "0 turn");
}

TEST(Policy, LeastLoaded) {
  EXPECT_EQ(choose("least-loaded", {candidate(0, 0, 0, 2), candidate(1, 9, 9, 1)}), "1 load");
  EXPECT_EQ(choose("least-loaded", {candidate(0, 0, 0, 2), candidate(1, 9, 9, 2)}, 0), "1 turn");
  Candidate waiting = candidate(0, 0, 0);
  waiting.load = 5;
  EXPECT_EQ(choose("least-loaded", {waiting, candidate(1, 0, 0)}, 1), "1 load") << "by its own report";
}

TEST(Policy, RoundRobin) {
  const std::vector<Candidate> three = {candidate(0, 0, 0), candidate(3, 9, 9, 9), candidate(4, 0, 0)};
  EXPECT_EQ(choose("round-robin", three), "0 turn");
  EXPECT_EQ(choose("round-robin", three, 0), "3 turn");
  EXPECT_EQ(choose("round-robin", three, 3), "4 turn");
  EXPECT_EQ(choose("round-robin", three, 4), "0 turn");
}

}  // namespace
}  // namespace lowkey::coordinator
