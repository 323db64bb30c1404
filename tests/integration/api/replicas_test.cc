// Replicas that come, go and drain; the metrics of all ranks.
#include <atomic>

#include "coordinator/membership/membership.h"
#include "tests/integration/api/api_fixture.h"

namespace lowkey::coordinator {
namespace {

using Replicas = ApiTest;
namespace json = boost::json;

TEST_F(Replicas, LoadIsSpread) {
  start();
  add_leader({.hold_after = 1});
  add_leader({.hold_after = 1});
  ASSERT_TRUE(wait_ready());
  ASSERT_TRUE(eventually([&] { return client().get("/ready").json().at("replicas") == 2; }));
  std::vector<HttpClient> clients;
  for (size_t i = 1; i <= 6; ++i) {
    clients.push_back(client());
    clients.back().send(post_text("/v1/completions", R"({"prompt":"a"})"));
    // With the first tokens: a prompt that a leader has not computed yet would count as its queue.
    ASSERT_TRUE(eventually([&] { return metric("lowkey_time_to_first_token_seconds_count") == i; }));
  }
  ASSERT_TRUE(leaders_[0]->wait_submits(3));
  ASSERT_TRUE(leaders_[1]->wait_submits(3));
}

TEST_F(Replicas, LostBeforeTheFirstTokenIsSentElsewhereOnce) {
  start();
  add_leader({.hold_after = 0});
  ASSERT_TRUE(wait_ready());
  auto connection = client();
  connection.send(post_text("/v1/completions", R"({"prompt":[5,6,7],"max_tokens":3})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  add_leader();
  ASSERT_TRUE(eventually([&] { return client().get("/ready").json().at("replicas") == 2; }));
  // A rank that leaves a question unanswered for a second is not up, either.
  EXPECT_TRUE(eventually([&] {
    return metric("lowkey_rank_up", {R"(peer_rank="2")", R"(peer_role="worker")"}) == 1;
  }));
  network_->drop(leaders_[0]->address());
  const auto answer = connection.read();
  EXPECT_EQ(answer.status, 200) << answer.body;
  auto submits = leaders_[1]->submits();
  ASSERT_EQ(submits.size(), 1u);
  wire::Submit before = leaders_[0]->submits()[0];
  EXPECT_NE(submits[0].request_id(), before.request_id());  // what the lost one may still say is not meant
  before.clear_request_id();
  submits[0].clear_request_id();
  EXPECT_EQ(submits[0].SerializeAsString(), before.SerializeAsString());
  EXPECT_EQ(metric("lowkey_continued_requests_total"), 0);
  EXPECT_EQ(metric("lowkey_rank_up", {R"(peer_rank="1")", R"(peer_role="worker")"}), 0);
}

TEST_F(Replicas, LostWithNoOtherIsAnswered503) {
  start_ready({.hold_after = 0});
  auto connection = client();
  connection.send(post_text("/v1/completions", R"({"prompt":"a"})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  network_->drop(leaders_[0]->address());
  const auto answer = connection.read();
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.headers.count("retry-after"), 1u);
  EXPECT_EQ(client().get("/ready").status, 503);
}

TEST_F(Replicas, LostInTheMiddleOfAStreamEndsItWithAnError) {
  start_ready({.hold_after = 2});
  auto streaming = client(), whole = client();
  streaming.send(post_text("/v1/completions", R"({"prompt":"a","stream":true})"));
  whole.send(post_text("/v1/completions", R"({"prompt":"a"})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(2));
  std::string seen;
  network_->drop(leaders_[0]->address());
  for (std::string more = streaming.read_some(); !more.empty(); more = streaming.read_some()) seen += more;
  EXPECT_NE(seen.find("data: {\"id\""), std::string::npos) << seen;
  EXPECT_NE(seen.find("event: error\ndata: {\"error\":"), std::string::npos) << seen;
  EXPECT_EQ(seen.find("[DONE]"), std::string::npos);
  EXPECT_EQ(whole.read().status, 503);
  EXPECT_EQ(metric("lowkey_continued_requests_total", {R"(outcome="ended")"}), 2);
}

TEST_F(Replicas, SilentLeaderIsNoticedByHeartbeat) {
  notices_silence_ = true;
  start_ready({.hold_after = 1});
  auto streaming = client();
  streaming.send(post_text("/v1/completions", R"({"prompt":"a","stream":true})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  network_->stall(leaders_[0]->address());
  const auto answer = streaming.read();
  EXPECT_NE(answer.body.find("event: error"), std::string::npos) << answer.body;
  EXPECT_NE(answer.body.find("no sign of life for 3.0 s"), std::string::npos) << answer.body;
  network_->resume(leaders_[0]->address());
}

TEST_F(Replicas, OneThatLeavesEndsWhatItAnswers) {
  start();
  add_leader({.hold_after = 1});
  ASSERT_TRUE(wait_ready());
  auto running = client();
  running.send(post_text("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":3})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  add_leader();
  ASSERT_TRUE(eventually([&] { return client().get("/ready").json().at("replicas") == 2; }));
  std::atomic<int> idle = 0;
  on_io([&] {
    coordinator_->membership().on_idle = [&](int) { ++idle; };
    return coordinator_->membership().on_leaving(0);
  });
  EXPECT_EQ(client().get("/ready").json().at("replicas"), 1);
  EXPECT_EQ(metric("lowkey_replicas", {R"(state="draining")"}), 1);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a"})").status, 200);
  EXPECT_EQ(leaders_[0]->submits().size(), 1u);
  EXPECT_EQ(idle, 0);
  leaders_[0]->release();
  EXPECT_EQ(running.read().events().back(), "[DONE]");
  EXPECT_TRUE(eventually([&] { return idle == 1; }));
  network_->drop(leaders_[0]->address());
  EXPECT_TRUE(eventually([&] { return metric("lowkey_membership_events_total", {R"(event="left")"}) == 1; }));
  EXPECT_EQ(metric("lowkey_replicas"), 1);  // it is not counted as gone
}

TEST_F(Replicas, MetricsOfAllRanksOnOnePage) {
  start_ready();
  add_leader({.answer_metrics = false});
  ASSERT_TRUE(
      eventually([&] { return client().get("/metrics").body.find("peer_rank=\"2\"") != std::string::npos; }));
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a","max_tokens":5})").status, 200);
  ClientAnswer answer;
  EXPECT_TRUE(eventually([&] {  // who needs more than a second for its answer is left out
    answer = client().get("/metrics");
    return answer.body.find(R"(role="worker")") != std::string::npos &&  // the leader's own
           series(answer.body, "lowkey_rank_up", {R"(peer_rank="1")"}) == 1;
  })) << answer.body;
  ASSERT_EQ(answer.status, 200);
  EXPECT_EQ(answer.headers.at("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  const std::string& page = answer.body;
  EXPECT_EQ(series(page, "lowkey_rank_up", {R"(peer_rank="2")"}), 0);  // connected, but silent
  EXPECT_EQ(series(page, "lowkey_time_to_first_token_seconds_count", {}), 1);
  EXPECT_EQ(series(page, "lowkey_inter_token_latency_seconds_count", {}), 4);
  EXPECT_EQ(series(page, "lowkey_e2e_request_latency_seconds_count", {}), 1);
  EXPECT_EQ(series(page, "lowkey_request_queue_time_seconds_count", {}), 1);
  EXPECT_EQ(series(page, "lowkey_request_generation_tokens_sum", {}), 5);
  EXPECT_EQ(series(page, "lowkey_request_success_total", {R"(finished_reason="length")"}), 1);
  EXPECT_EQ(series(page, "lowkey_http_requests_total", {R"(endpoint="/v1/completions")", R"(status="200")"}),
            1);
  EXPECT_EQ(series(page, "lowkey_queue_limit_requests", {}), 256);
  EXPECT_EQ(series(page, "lowkey_ready", {}), 1);
}

TEST_F(Replicas, DrainFinishesWhatIsRunning) {
  start_ready({.hold_after = 1});
  auto idle = client(), running = client();
  EXPECT_EQ(idle.get("/health").status, 200);
  running.send(post_text("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":3})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  on_io([&] {
    coordinator_->drain();
    return 0;
  });
  EXPECT_EQ(idle.read_some(), "");  // closed, having nothing to wait for
  const auto refused = client().post("/v1/completions", R"({"prompt":"a"})");
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.count("retry-after"), 1u);
  EXPECT_FALSE(refused.keep_alive);
  EXPECT_EQ(client().get("/ready").json().at("reason"), "draining");
  EXPECT_EQ(client().get("/health").status, 200);
  leaders_[0]->release();
  EXPECT_EQ(running.read().events().back(), "[DONE]");
  EXPECT_TRUE(wait_drained());
  EXPECT_TRUE(leaders_[0]->wait_drained());
}

TEST_F(Replicas, DrainingAgainEndsWhatIsRunning) {
  start_ready({.hold_after = 1});
  auto running = client();
  running.send(post_text("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":3})"));
  EXPECT_NE(running.read_some(), "");
  for (int i = 0; i < 2; ++i)
    on_io([&] {
      coordinator_->drain();
      return 0;
    });
  std::string rest;
  for (std::string more; !(more = running.read_some()).empty();) rest += more;
  EXPECT_NE(rest.find("event: error"), std::string::npos) << rest;
  EXPECT_TRUE(wait_drained());
}

TEST_F(Replicas, DrainEndsWhatDoesNotFinish) {
  config_.drain_seconds = 0;
  start_ready({.hold_after = 1});
  auto streaming = client(), whole = client();
  streaming.send(post_text("/v1/completions", R"({"prompt":"a","stream":true})"));
  whole.send(post_text("/v1/completions", R"({"prompt":"a"})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(2));
  on_io([&] {
    coordinator_->drain();
    return 0;
  });
  EXPECT_NE(streaming.read().body.find("event: error"), std::string::npos);
  EXPECT_EQ(whole.read().status, 503);
  EXPECT_TRUE(leaders_[0]->wait_cancels(2));
  EXPECT_TRUE(wait_drained());
}

}  // namespace
}  // namespace lowkey::coordinator
