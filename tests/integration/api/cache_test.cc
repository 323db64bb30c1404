// What requests may say about the cache, and what their answers tell of it.
#include <set>

#include "kvstore/page/page_identity.h"
#include "tests/integration/api/api_fixture.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;
using Cache = ApiTest;

TEST_F(Cache, KeysAndSaltsShareNoPages) {
  config_.api_key = "one,two";
  start_ready();
  const auto ask = [&](const std::string& key, const std::string& salt) {
    const std::string body =
        salt.empty() ? R"({"prompt":"a"})" : R"({"prompt":"a","cache_salt":")" + salt + "\"}";
    EXPECT_EQ(client().post("/v1/completions", body, "Authorization: Bearer " + key + "\r\n").status, 200);
    return leaders_[0]->submits().back().salt();
  };
  const std::set<std::string> salts = {ask("one", ""), ask("two", ""), ask("one", "s"), ask("two", "s")};
  EXPECT_EQ(salts.size(), 4u);
  EXPECT_EQ(salts.count(""), 0u);
  EXPECT_EQ(salts.count(ask("one", "s")), 1u);
}

TEST_F(Cache, WithoutKeyAndSaltPagesAreShared) {
  start_ready();
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a"})").status, 200);
  EXPECT_EQ(client().post("/v1/completions", R"({"prompt":"a","cache_salt":"s","min_levels":"all"})").status,
            200);
  const auto submits = leaders_[0]->submits();
  EXPECT_EQ(submits[0].salt(), "");
  EXPECT_EQ(submits[0].min_levels(), 0u);
  EXPECT_NE(submits[1].salt(), "");
  EXPECT_EQ(submits[1].min_levels(), 4u);
}

TEST_F(Cache, UsageTellsTheTiersAndTheAnswerIfItWasCoarse) {
  wire::KvReport kv;
  kv.set_levels(3);
  kv.set_lowest_levels_read(2);
  kv.set_coarse_tokens(2);
  start_ready({.kv = kv, .cached_store = 4, .cached_disk = 3});
  const std::string tiers = R"({"cached_tokens":5,"cached_tokens_by_tier":{"device":1,"host":1,"disk":3}})";
  const std::string coarse = R"({"levels":3,"lowest_levels_read":2,"coarse_tokens":2})";
  const auto whole = client().post("/v1/completions", R"({"prompt":[1,2,3,4,5,6],"max_tokens":2})").json();
  EXPECT_EQ(json::serialize(whole.at("usage").at("prompt_tokens_details")), tiers);
  EXPECT_EQ(json::serialize(whole.at("kv")), coarse);
  const auto chunks = client()
                          .post("/v1/completions", R"({"prompt":[1,2,3,4,5,6],"max_tokens":2,"stream":true,
                                "stream_options":{"include_usage":true}})")
                          .chunks();
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_EQ(chunks[0].as_object().count("kv"), 0u);
  EXPECT_EQ(json::serialize(chunks[1].at("kv")), coarse);
  EXPECT_EQ(json::serialize(chunks[2].at("usage").at("prompt_tokens_details")), tiers);
}

// ---- which replica has the prefix
// ---------------------------------------------------------------------------

class PrefixRouting : public ApiTest {
 protected:
  static constexpr int kPageTokens = 4;
  static wire::ReplicaState state() {
    wire::ReplicaState state;
    auto& cache = *state.mutable_cache();
    cache.set_model_fingerprint(std::string(16, 'm'));
    cache.set_layout_fingerprint(std::string(16, 'l'));
    cache.set_page_tokens(kPageTokens);
    cache.set_num_levels(3);
    cache.set_num_ranks(1);
    state.mutable_rates()->set_prefill_tokens_per_second(10);  // slow: prefixes matter
    return state;
  }
  static std::vector<Hash128> pages_of(const std::vector<int32_t>& tokens) {
    constexpr uint64_t kModel = 0x6d6d6d6d6d6d6d6d, kLayout = 0x6c6c6c6c6c6c6c6c;  // as the state above says
    const Hash128 model{kModel, kModel}, layout{kLayout, kLayout};
    std::vector<Hash128> pages = {kvstore::root_identity(model, layout, "")};
    for (size_t at = 0; at + kPageTokens <= tokens.size(); at += kPageTokens)
      pages.push_back(kvstore::chain_hash(pages.back(), std::span(tokens).subspan(at, kPageTokens)));
    pages.erase(pages.begin());
    return pages;
  }
  double indexed() { return metric("lowkey_router_index_pages", {R"(holder="device")"}); }
  void start_three() {
    start();
    for (int i = 0; i < 3; ++i) add_leader({.state = state()});
    ASSERT_TRUE(
        eventually([&] { return wait_ready() && client().get("/ready").json().at("replicas") == 3; }));
    for (auto& leader : leaders_) {
      ASSERT_TRUE(leader->wait_resyncs(1));  // asked what it has
      leader->send_pages({}, true);
    }
  }
  const std::vector<int32_t> prompt_ = {11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22};
  const std::string body_ = R"({"prompt":[11,12,13,14,15,16,17,18,19,20,21,22],"max_tokens":2})";
};

TEST_F(PrefixRouting, GoesWhereThePrefixIs) {
  start_three();
  leaders_[1]->send_pages(pages_of(prompt_));
  ASSERT_TRUE(eventually([&] { return indexed() == 3; }));
  std::string id;
  for (int i = 0; i < 3; ++i) {
    const auto answer = client().post("/v1/completions", body_);
    ASSERT_EQ(answer.status, 200);
    id = json::value_to<std::string>(answer.json().at("id"));
  }
  EXPECT_EQ(leaders_[1]->submits().size(), 3u);
  EXPECT_EQ(metric("lowkey_routed_requests_total", {R"(reason="prefix")"}), 3);
  EXPECT_EQ(metric("lowkey_predicted_time_to_first_token_seconds_count"), 3);

  const auto told = client().get("/v1/kv/explain?request=" + id);
  ASSERT_EQ(told.status, 200);
  EXPECT_EQ(told.json().at("status"), "finished");
  EXPECT_EQ(told.json().at("finish_reason"), "length");
  const auto routing = told.json().at("routing").at(0);
  EXPECT_EQ(routing.at("replica"), 1);
  EXPECT_EQ(routing.at("reason"), "prefix");
  EXPECT_EQ(routing.at("policy"), "kv");
  EXPECT_EQ(routing.at("candidates").as_array().size(), 3u);
  const auto& chosen = routing.at("candidates").at(0);  // the chosen one first
  EXPECT_EQ(chosen.at("replica"), 1);
  EXPECT_EQ(chosen.at("device_pages"), 2);  // its last token is computed in any case
  EXPECT_EQ(chosen.at("compute_tokens"), 4);
  EXPECT_DOUBLE_EQ(chosen.at("compute_seconds").as_double(), 0.4);

  network_->drop(leaders_[1]->address());
  EXPECT_TRUE(eventually([&] { return indexed() == 0; }));
}

TEST_F(PrefixRouting, AGapIsFollowedByAResync) {
  start_three();
  leaders_[0]->send_pages(pages_of(prompt_), false, 7);
  ASSERT_TRUE(leaders_[0]->wait_resyncs(2));
  EXPECT_EQ(metric("lowkey_router_resyncs_total"), 1);
  EXPECT_EQ(indexed(), 0);
  leaders_[0]->send_pages(pages_of(prompt_), true);
  EXPECT_TRUE(eventually([&] { return indexed() == 3; }));
  leaders_[0]->send_pages({}, false);
  leaders_[0]->send_pages({}, false);
  EXPECT_EQ(metric("lowkey_router_resyncs_total"), 1);
}

TEST_F(PrefixRouting, RoundRobinDoesNotLook) {
  config_.routing = "round-robin";
  start_three();
  leaders_[1]->send_pages(pages_of(prompt_));
  ASSERT_TRUE(eventually([&] { return indexed() == 3; }));
  for (int i = 0; i < 6; ++i) EXPECT_EQ(client().post("/v1/completions", body_).status, 200);
  for (const auto& leader : leaders_) EXPECT_EQ(leader->submits().size(), 2u);
  EXPECT_EQ(metric("lowkey_routed_requests_total", {R"(reason="turn")"}), 6);
}

// ---- GET /v1/kv/explain
// -------------------------------------------------------------------------------------

TEST_F(Cache, ExplainsTheReportAndTheContinuation) {
  wire::KvReport kv;
  kv.set_prompt_tokens(6);
  kv.set_levels(3);
  kv.set_lowest_levels_read(3);
  kv.set_host_tokens(4);
  kv.set_decision("restore");
  kv.set_predicted_restore_seconds(0.0625);
  kv.add_notes("first level in place after 3 ms");
  start();
  add_leader({.hold_after = 2});
  ASSERT_TRUE(wait_ready());
  auto whole = client();
  whole.send(post_text("/v1/completions", R"({"prompt":[1,2,3,4,5,6],"max_tokens":4})"));
  ASSERT_TRUE(eventually([&] { return metric("lowkey_inter_token_latency_seconds_count") == 1; }));
  add_leader({.kv = kv});
  ASSERT_TRUE(eventually([&] { return client().get("/ready").json().at("replicas") == 2; }));
  network_->drop(leaders_[0]->address());
  const auto answer = whole.read();
  ASSERT_EQ(answer.status, 200);
  const auto told = client().get("/v1/kv/explain?request=" + answer.headers.at("x-request-id"));
  ASSERT_EQ(told.status, 200) << told.body;
  const auto story = told.json();
  EXPECT_EQ(story.at("answer_tokens"), 4);
  EXPECT_EQ(story.at("cache").at("decision"), "restore");
  EXPECT_EQ(story.at("cache").at("host_tokens"), 4);
  EXPECT_NE(told.body.find("\"predicted_restore_seconds\": 0.0625"), std::string::npos) << told.body;
  EXPECT_EQ(story.at("cache").at("notes").at(0), "first level in place after 3 ms");
  EXPECT_EQ(story.at("routing").as_array().size(), 2u);
  EXPECT_EQ(story.at("continuation").at("from_replica"), 0);
  EXPECT_EQ(story.at("continuation").at("to_replica"), 1);
  EXPECT_EQ(story.at("continuation").at("after_answer_tokens"), 2);
}

TEST_F(Cache, ExplainsOnlyWhatItKnowsToWhomItBelongs) {
  config_.api_key = "one,two";
  start_ready();
  const std::string one = "Authorization: Bearer one\r\n", two = "Authorization: Bearer two\r\n";
  const auto id = client().post("/v1/completions", R"({"prompt":"a"})", one).headers.at("x-request-id");
  EXPECT_EQ(client().get("/v1/kv/explain?x=1&request=" + id, one).status, 200);
  EXPECT_EQ(client().get("/v1/kv/explain?request=" + id, two).status, 404);
  EXPECT_EQ(client().get("/v1/kv/explain?request=" + id).status, 401);
  const auto unknown = client().get("/v1/kv/explain?request=cmpl-0", one);
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(json::value_to<std::string>(unknown.json().at("error").at("message")),
            "Request 'cmpl-0' is unknown; the last 1024 are remembered.");
  EXPECT_EQ(client().get("/v1/kv/explain", one).status, 400);
}

}  // namespace
}  // namespace lowkey::coordinator
