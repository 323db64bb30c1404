#include "coordinator/routing/router.h"

#include <gtest/gtest.h>

#include "base/serve_config.h"
#include "coordinator/membership/membership.h"
#include "monitoring/metrics.h"
#include "tests/support/fake_connection.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

using test::FakeConnection;

struct RouterTest : testing::Test {
  std::shared_ptr<FakeConnection> leader(int replica, uint64_t max_tokens = 100'000) {
    auto peer = std::make_shared<FakeConnection>(transport::Role::kWorker, 1 + replica, replica);
    membership.on_up(peer);
    router.on_up(peer);
    report(peer, 0, max_tokens);
    return peer;
  }
  void report(const transport::ConnectionPtr& peer, uint64_t queued, uint64_t max_tokens = 100'000) {
    wire::ReplicaState state;
    state.set_ready(true);
    state.set_max_sequence_tokens(max_tokens);
    state.set_queued_prompt_tokens(queued);
    state.mutable_rates()->set_prefill_tokens_per_second(1000);
    wire::CacheIdentity& cache = *state.mutable_cache();
    cache.set_model_fingerprint(std::string(16, 'f'));
    cache.set_layout_fingerprint(std::string(16, 'f'));
    cache.set_page_tokens(page_tokens);
    cache.set_num_ranks(1);
    membership.on_state(peer, state);
  }
  static int resyncs(const std::shared_ptr<FakeConnection>& peer) {
    return peer->sent[transport::MessageType::kPrefixResync];
  }
  RoutingDecision choose(uint64_t total = 2000, int excluded = -1) {
    return router.choose({.tokens = prompt, .total_tokens = total, .excluded = excluded});
  }
  uint32_t page_tokens = 0;  // not told
  const std::vector<int32_t> prompt = std::vector<int32_t>(1000, 7);
  monitoring::Metrics metrics{{{"role", "coordinator"}, {"rank", "0"}}};
  Membership membership{metrics};
  Router router{ServeConfig{}, membership, metrics};
};

TEST_F(RouterTest, OnlyWhoCanTakeIt) {
  EXPECT_EQ(choose().replica, -1);
  leader(0, 1500);
  EXPECT_EQ(choose().replica, -1);
  EXPECT_EQ(choose(1500).replica, 0);
  auto second = leader(1);
  EXPECT_EQ(choose().replica, 1);
  EXPECT_STREQ(choose().reason, "only");
  EXPECT_EQ(choose(1500, 1).replica, 0);
  EXPECT_EQ(choose(2000, 1).replica, -1);
  membership.on_leaving(1);
  EXPECT_EQ(choose().replica, -1);
}

TEST_F(RouterTest, CountsWhatWasSentSinceTheLastReport) {
  auto first = leader(0), second = leader(1);
  EXPECT_DOUBLE_EQ(choose().candidates[0].first_token(), 1);
  auto decision = choose();
  ASSERT_EQ(decision.replica, 0);
  router.note_submitted(1, decision);
  EXPECT_DOUBLE_EQ(choose().candidates[0].queue, 1);
  EXPECT_EQ(choose().replica, 1);
  EXPECT_STREQ(choose().reason, "load");
  router.note_started(1);
  EXPECT_DOUBLE_EQ(choose().candidates[0].queue, 0);
  report(second, 500);
  EXPECT_DOUBLE_EQ(choose().candidates[1].queue, 0.5);
}

TEST_F(RouterTest, RequestsThatShareAPrefixFollowTheFirstBeforeItIsComputed) {
  page_tokens = 10;
  auto first = leader(0), second = leader(1);
  auto decision = choose();
  const int chosen = decision.replica;
  router.note_submitted(1, decision);
  const std::vector<int32_t> other(1500, 9);
  EXPECT_EQ(router.choose({.tokens = other, .total_tokens = 2000}).replica, 1 - chosen)
      << "nothing in common";
  // It would wait for the first there, for about as long as it would be computed here.
  auto same = choose();
  EXPECT_EQ(same.replica, chosen);
  EXPECT_EQ(same.chosen()->prefix, (PrefixRun{99, 99, 0}));
  EXPECT_EQ(same.chosen()->compute_tokens, 10u);
  router.note_submitted(2, same);
  router.note_started(1);  // its leader has told its pages meanwhile, or they are gone
  EXPECT_EQ(choose().candidates[chosen].prefix.device, 99u) << "the second computes them, too";
  router.note_started(2);
  EXPECT_EQ(choose().candidates[chosen].prefix.device, 0u);
}

TEST_F(RouterTest, AsksNewHoldersOnceAndAgainAfterAGap) {
  auto peer = leader(0);
  EXPECT_EQ(resyncs(peer), 1);
  wire::PrefixEvents events;
  events.set_sequence(4);
  router.on_prefix_events(peer, events);  // older than the answer to that
  EXPECT_EQ(resyncs(peer), 1);
  events.set_reset(true);
  events.set_added(std::string(32, 'p'));
  router.on_prefix_events(peer, events);
  EXPECT_EQ(router.index().size(), 1u);
  events.set_reset(false);
  events.set_sequence(6);
  router.on_prefix_events(peer, events);
  EXPECT_EQ(resyncs(peer), 2);
  auto stranger = std::make_shared<FakeConnection>(transport::Role::kWorker, 6, 5);
  router.on_prefix_events(stranger, events);
  EXPECT_EQ(resyncs(stranger), 0);
  router.on_down(peer);
  EXPECT_EQ(router.index().size(), 0u);
}

}  // namespace
}  // namespace lowkey::coordinator
