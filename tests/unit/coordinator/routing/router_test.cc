#include "coordinator/routing/router.h"

#include <gtest/gtest.h>

#include "base/serve_config.h"
#include "coordinator/membership/membership.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

class Leader final : public transport::ControlConnection {
 public:
  explicit Leader(int replica) {
    info_.world_rank = 1 + replica;
    info_.replica = replica;
  }
  const transport::PeerInfo& peer() const override { return info_; }
  uint64_t id() const override { return static_cast<uint64_t>(info_.world_rank); }
  Status send(transport::MessageType type, std::string) override {
    resyncs += type == transport::MessageType::kPrefixResync ? 1 : 0;
    return {};
  }
  void close(const std::string&) override {}
  int resyncs = 0;

 private:
  transport::PeerInfo info_;
};

struct RouterTest : testing::Test {
  std::shared_ptr<Leader> leader(int replica, uint64_t max_tokens = 100'000) {
    auto peer = std::make_shared<Leader>(replica);
    membership.on_up(peer);
    router.on_up(peer);
    report(peer, 0, max_tokens);
    return peer;
  }
  void report(const std::shared_ptr<Leader>& peer, uint64_t queued, uint64_t max_tokens = 100'000) {
    wire::ReplicaState state;
    state.set_ready(true);
    state.set_max_sequence_tokens(max_tokens);
    state.set_queued_prompt_tokens(queued);
    state.mutable_rates()->set_prefill_tokens_per_second(1000);
    membership.on_state(peer, state);
  }
  RoutingDecision choose(uint64_t total = 2000, int excluded = -1) {
    return router.choose({.tokens = prompt, .total_tokens = total, .excluded = excluded});
  }
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
  const auto decision = choose();
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

TEST_F(RouterTest, AsksNewHoldersOnceAndAgainAfterAGap) {
  auto peer = leader(0);
  EXPECT_EQ(peer->resyncs, 1);
  wire::PrefixEvents events;
  events.set_sequence(4);
  router.on_prefix_events(peer, events);  // older than the answer to that
  EXPECT_EQ(peer->resyncs, 1);
  events.set_reset(true);
  events.set_added(std::string(32, 'p'));
  router.on_prefix_events(peer, events);
  EXPECT_EQ(router.index().size(), 1u);
  events.set_reset(false);
  events.set_sequence(6);
  router.on_prefix_events(peer, events);
  EXPECT_EQ(peer->resyncs, 2);
  auto stranger = std::make_shared<Leader>(5);
  router.on_prefix_events(stranger, events);
  EXPECT_EQ(stranger->resyncs, 0);
  router.on_down(peer);
  EXPECT_EQ(router.index().size(), 0u);
}

}  // namespace
}  // namespace lowkey::coordinator
