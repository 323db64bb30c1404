// Answers that have begun when their replica is lost.
#include "tests/integration/api/api_fixture.h"

namespace lowkey::coordinator {
namespace {

namespace json = boost::json;

class Continuation : public ApiTest {
 protected:
  // One replica that stops after `tokens` of each answer, another that goes on.
  void start_two(size_t tokens, ScriptedLeader::Script first = {}, ScriptedLeader::Script second = {}) {
    start();
    first.hold_after = tokens;
    second.max_sequence_tokens = 1000;  // less than the first: takes nothing that asks for more
    add_leader(std::move(first));
    ASSERT_TRUE(wait_ready());
    second_ = std::move(second);
  }
  void add_second() {
    add_leader(second_);
    ASSERT_TRUE(eventually([&] { return client().get("/ready").json().at("replicas") == 2; }));
  }
  static std::string text_of(const ClientAnswer& answer) {
    std::string text;
    for (const auto& chunk : answer.chunks())
      for (const auto& choice : chunk.at("choices").as_array())
        text += json::value_to<std::string>(choice.at("text"));
    return text;
  }
  ScriptedLeader::Script second_;
};

TEST_F(Continuation, AStreamGoesOnFromItsTokens) {
  const std::vector<int32_t> words = {100, 101, 102, 103, 104};
  start_two(3, {.tokens = words}, {.tokens = words});
  const std::string body =
      R"({"prompt":[5,6,7],"max_tokens":10,"stream":true,"logprobs":1,"cache_salt":"s","min_levels":2,
          "stream_options":{"include_usage":true}})";
  auto streaming = client();
  streaming.send(post_text("/v1/completions", body));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  ASSERT_TRUE(eventually([&] { return metric("lowkey_inter_token_latency_seconds_count") == 2; }));
  add_second();
  network_->drop(leaders_[0]->address());
  const auto answer = streaming.read();
  EXPECT_EQ(answer.events().back(), "[DONE]") << answer.body;
  EXPECT_EQ(answer.body.find("event: error"), std::string::npos);

  const auto before = leaders_[0]->submits().at(0), after = leaders_[1]->submits().at(0);
  EXPECT_EQ(std::vector<int32_t>(after.emitted().begin(), after.emitted().end()),
            std::vector<int32_t>(words.begin(), words.begin() + 3));
  EXPECT_EQ(after.sampling().seed(), before.sampling().seed());
  EXPECT_EQ(after.sampling().max_tokens(), 10u);  // of the whole answer
  EXPECT_EQ(after.salt(), before.salt());
  EXPECT_EQ(after.min_levels(), 2u);
  EXPECT_TRUE(after.sampling().logprobs());

  const auto undisturbed = client().post("/v1/completions", body);  // by the second one, from the start
  EXPECT_EQ(text_of(answer), text_of(undisturbed));
  ASSERT_EQ(answer.chunks().size(), undisturbed.chunks().size());
  for (size_t i = 0; i < answer.chunks().size(); ++i) {
    auto ours = answer.chunks()[i].as_object(), theirs = undisturbed.chunks()[i].as_object();
    EXPECT_EQ(ours.at("id"), answer.chunks()[0].at("id"));
    EXPECT_EQ(ours.at("choices"), theirs.at("choices")) << i;  // texts, logprobs and their offsets
    EXPECT_EQ(ours.at("usage"), theirs.at("usage")) << i;
  }
  EXPECT_EQ(metric("lowkey_continued_requests_total", {R"(outcome="continued")"}), 1);
}

TEST_F(Continuation, AWholeAnswerAndAStopStringOverTheGap) {
  std::vector<int32_t> words(40, 0);
  for (size_t i = 0; i < words.size(); ++i) words[i] = 100 + static_cast<int32_t>(i);
  // A stop string that begins before the loss and ends behind it.
  const std::string head = model()->tokenizer->decode(std::span(words).subspan(0, 2), true);
  const std::string text = model()->tokenizer->decode(std::span(words).subspan(0, 5), true);
  const std::string stop = text.substr(head.size());
  start_two(3, {.tokens = words}, {.tokens = words});
  auto whole = client();
  whole.send(post_text("/v1/completions",
                       json::serialize(json::object{{"prompt", "a"}, {"max_tokens", 30}, {"stop", stop}})));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  ASSERT_TRUE(eventually([&] { return metric("lowkey_inter_token_latency_seconds_count") == 2; }));
  add_second();
  network_->drop(leaders_[0]->address());
  const auto answer = whole.read();
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto choice = answer.json().at("choices").at(0);
  EXPECT_EQ(json::value_to<std::string>(choice.at("text")), head);
  EXPECT_EQ(json::value_to<std::string>(choice.at("finish_reason")), "stop");
  EXPECT_TRUE(leaders_[1]->wait_cancels(1));  // it would have gone on
}

TEST_F(Continuation, AtMostOnce) {
  start_two(2, {}, {.hold_after = 4});
  auto streaming = client();
  streaming.send(post_text("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":9})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  ASSERT_TRUE(eventually([&] { return metric("lowkey_time_to_first_token_seconds_count") == 1; }));
  add_second();
  network_->drop(leaders_[0]->address());
  ASSERT_TRUE(leaders_[1]->wait_submits(1));
  add_leader();
  ASSERT_TRUE(eventually([&] { return client().get("/ready").json().at("replicas") == 2; }));
  network_->drop(leaders_[1]->address());
  const auto answer = streaming.read();
  EXPECT_NE(answer.body.find("event: error"), std::string::npos) << answer.body;
  EXPECT_TRUE(leaders_[2]->submits().empty());
  EXPECT_EQ(metric("lowkey_continued_requests_total", {R"(outcome="continued")"}), 1);
  EXPECT_EQ(metric("lowkey_continued_requests_total", {R"(outcome="ended")"}), 1);
}

TEST_F(Continuation, MovedWhenItsReplicaSaysItIsEnding) {
  start_two(1, {.error = Error{Code::kUnavailable, "draining", {}}});
  add_second();
  const auto answer = client().post("/v1/completions", R"({"prompt":"a","max_tokens":3})");
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json().at("usage").at("completion_tokens").as_int64(), 3);
  ASSERT_EQ(leaders_[0]->submits().size(), 1u);  // its turn
  ASSERT_EQ(leaders_[1]->submits().size(), 1u);
  EXPECT_EQ(leaders_[1]->submits()[0].emitted_size(), 1);
}

TEST_F(Continuation, AFullReplicaIsRoutedAround) {
  const Error full{Code::kResourceExhausted, "the engine's queue of 256 requests is full", {}};
  start_two(0, {.error = full});
  add_second();
  const auto answer = client().post("/v1/completions", R"({"prompt":"a","max_tokens":3})");
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json().at("usage").at("completion_tokens").as_int64(), 3);
  EXPECT_EQ(leaders_[0]->submits().size(), 1u);  // its turn
  ASSERT_EQ(leaders_[1]->submits().size(), 1u);
  EXPECT_EQ(leaders_[1]->submits()[0].emitted_size(), 0);
  EXPECT_EQ(metric("lowkey_routed_requests_total"), 2);
}

TEST_F(Continuation, WhereAllReplicasAreFullItIsSaidOnce) {
  const Error full{Code::kResourceExhausted, "the engine's queue of 256 requests is full", {}};
  start_two(0, {.error = full}, {.hold_after = 0, .error = full});
  add_second();
  const auto answer = client().post("/v1/completions", R"({"prompt":"a","max_tokens":3})");
  EXPECT_EQ(answer.status, 429) << answer.body;
  EXPECT_NE(answer.body.find(full.message), std::string::npos) << answer.body;
  EXPECT_EQ(leaders_[0]->submits().size(), 1u);
  EXPECT_EQ(leaders_[1]->submits().size(), 1u);
  EXPECT_EQ(client().get("/health").status, 200);
}

TEST_F(Continuation, WhatHasBegunDoesNotMoveForWantOfRoom) {
  start_two(1, {.error = Error{Code::kResourceExhausted, "no room for its next page", {}}});
  add_second();
  const auto answer = client().post("/v1/completions", R"({"prompt":"a","max_tokens":3})");
  EXPECT_EQ(answer.status, 429) << answer.body;
  EXPECT_TRUE(leaders_[1]->submits().empty());
}

// Five seconds are what is promised for it: silence is noticed after three, and looked for in quarters of a
// second.
TEST_F(Continuation, OnceALeaderIsSilent) {
  notices_silence_ = true;
  start_two(2);
  auto streaming = client();
  streaming.send(post_text("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":4})"));
  ASSERT_TRUE(eventually([&] { return metric("lowkey_inter_token_latency_seconds_count") == 1; }));
  add_second();
  network_->stall(leaders_[0]->address());
  const auto answer = streaming.read();
  EXPECT_EQ(answer.events().back(), "[DONE]");
  const auto told = client().get("/v1/kv/explain?request=" + answer.headers.at("x-request-id"));
  EXPECT_NE(told.body.find("no sign of life for 3.0 s"), std::string::npos) << told.body;
  network_->resume(leaders_[0]->address());
}

TEST_F(Continuation, CoarseTokensAreCountedOverTheGap) {
  wire::KvReport coarse, fine;
  coarse.set_levels(3);
  coarse.set_lowest_levels_read(1);
  coarse.set_coarse_tokens(1);
  fine.set_levels(3);
  fine.set_lowest_levels_read(3);
  start_two(3, {.kv = coarse}, {.kv = fine});
  auto whole = client();
  whole.send(post_text("/v1/completions", R"({"prompt":"a","max_tokens":9})"));
  ASSERT_TRUE(leaders_[0]->wait_submits(1));
  ASSERT_TRUE(eventually([&] { return metric("lowkey_inter_token_latency_seconds_count") == 2; }));
  add_second();
  network_->drop(leaders_[0]->address());
  const auto answer = whole.read();
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(json::serialize(answer.json().at("kv")),
            R"({"levels":3,"lowest_levels_read":1,"coarse_tokens":3})");
}

}  // namespace
}  // namespace lowkey::coordinator
